"""Noise fields and the fixed bank of lung textures that films are made of."""

from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

SIZE = 96
BANK_SIZE = 48
_BANK_SEED = 7
_POLAR_SIZE = 160


class TextureBank(NamedTuple):
    """Fixed textures, ``BANK_SIZE`` of each kind, that studies pick from.

    Attributes:
        vessels: Vessel trees about the hila.
        soft: Large soft noise, for the borders of opacities and for haze.
        fine: Fine lung grain.
    """

    vessels: Array
    soft: Array
    fine: Array


def ramp(value: Array) -> Array:
    """A soft step: 0 below -1/2, 1 above 1/2, linear between."""
    return np.clip(value + np.float32(0.5), 0, 1)


def fourth(value: Array) -> Array:
    """The fourth power, several times faster than ``**`` on float32."""
    return np.square(np.square(value))


def smooth_noise(
    rng: np.random.Generator, count: int, octaves: tuple[int, ...], size: int = SIZE
) -> Array:
    """Value noise of unit scale, shape (count, size, size); an octave is its cells per side."""
    total = np.zeros((count, size, size), np.float32)
    for cells in octaves:
        grid = rng.standard_normal((count, cells + 2, cells + 2)).astype(np.float32)
        position = np.linspace(0, cells + 0.999, size)
        index = position.astype(int)
        blend = (position - index).astype(np.float32)
        blend = blend * blend * (3 - 2 * blend)
        rows = grid[:, index] * (1 - blend)[None, :, None]
        rows = rows + grid[:, index + 1] * blend[None, :, None]
        columns = rows[:, :, index] * (1 - blend) + rows[:, :, index + 1] * blend
        total += columns / len(octaves) ** 0.5
    return total


@lru_cache(maxsize=1)
def texture_bank() -> TextureBank:
    """The textures, made once in a process; the same on every machine."""
    rng = np.random.default_rng(_BANK_SEED)
    vessels = _vessel_trees(rng)
    soft = smooth_noise(rng, BANK_SIZE, (5, 9, 17))
    return TextureBank(vessels, soft, smooth_noise(rng, BANK_SIZE, (24, 40)))


def _vessel_trees(rng: np.random.Generator) -> Array:
    """Ridged noise in log-polar coordinates about each hilum: branches that thin outwards."""
    axis = np.linspace(-1, 1, SIZE)
    y, x = (field.astype(np.float32) for field in np.meshgrid(axis, axis, indexing="ij"))
    out, down = np.abs(x) - 0.2, y - 0.02
    radius, angle = np.sqrt(out * out + down * down) + 1e-3, np.arctan2(down, out)
    other_side = np.where(x > 0, _POLAR_SIZE // 2, 0)
    trees = np.zeros((BANK_SIZE, SIZE, SIZE), np.float32)
    for turns, rings, strength in ((7, 1.6, 1.0), (13, 3.0, 0.8), (23, 6.0, 0.5)):
        polar = smooth_noise(rng, BANK_SIZE, (24,), _POLAR_SIZE)
        along_angle = ((angle / np.pi + 1) * turns * 3.2).astype(np.float32) + other_side
        along_radius = (np.log(radius * 20 + 1) * rings * 4).astype(np.float32)
        field = _sample(polar, along_radius, along_angle)
        trees += strength * np.clip(1 - np.abs(field) * 2.6, 0, 1) ** 2
    trees *= np.exp(-radius * 1.5) * 1.7 * np.clip(radius * 6, 0, 1)
    trees += 0.9 * np.exp(-(((out - 0.04) / 0.09) ** 2 + (down / 0.16) ** 2))  # the hila
    return trees.astype(np.float32)


def _sample(fields: Array, rows: Array, columns: Array) -> Array:
    """Bilinear look-up of (n, h, w) fields at one grid of fractional positions."""
    last = _POLAR_SIZE - 2
    rows, columns = np.clip(rows, 0, last), np.clip(columns, 0, last)
    top, left = rows.astype(int), columns.astype(int)
    down, across = rows - top, columns - left
    near = fields[:, top, left] * (1 - down) + fields[:, top + 1, left] * down
    far = fields[:, top, left + 1] * (1 - down) + fields[:, top + 1, left + 1] * down
    blended: Array = near * (1 - across) + far * across
    return blended
