"""The scanner: what turns an ideal film into the picture that a site stores."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from simulations.phantoms.texture import SIZE, Array, texture_bank

Span = tuple[float, float]

_GLYPH_ROWS = {
    "L": ("1000", "1000", "1000", "1000", "1000", "1111"),
    "R": ("1110", "1001", "1001", "1110", "1010", "1001"),
}
_GLYPHS = {
    letter: np.array([[float(cell) for cell in row] for row in rows], np.float32)
    for letter, rows in _GLYPH_ROWS.items()
}


@dataclass(frozen=True)
class Scanner:
    """How a site exposes and stores its films; a span is drawn from anew for every film.

    Attributes:
        gamma: Exponent of the display curve.
        contrast: Window width, as a factor.
        noise: Standard deviation of the quantum noise.
        blur: Least and most passes of scatter blur.
        native: Side of the detector in pixels; below 96 the film is stored coarser and enlarged.
        collimation: Probability that blades cut the borders.
        marker: Probability of a burnt-in side marker.
        mirrored: Films are stored left-right swapped.
        portable: Share of bedside films (larger heart, higher diaphragm, flatter contrast).
        bias: Constant offset of the level.
        grid: Amplitude of an anti-scatter grid's stripes.
        haze: Veiling glare.
        sharpen: Strength of edge enhancement.
    """

    gamma: Span = (0.85, 1.15)
    contrast: Span = (0.85, 1.05)
    noise: Span = (0.02, 0.04)
    blur: tuple[int, int] = (0, 1)
    native: int = SIZE
    collimation: float = 0.2
    marker: float = 0.5
    mirrored: bool = False
    portable: float = 0.1
    bias: float = 0.0
    grid: float = 0.0
    haze: Span = (0.0, 0.05)
    sharpen: float = 0.0


def column(rng: np.random.Generator, low: float, high: float, count: int) -> Array:
    """Uniform numbers of shape (count, 1, 1), one for each film."""
    return rng.uniform(low, high, count).astype(np.float32)[:, None, None]


def expose(
    film: Array, portable: Array, soft: Array, scanner: Scanner, rng: np.random.Generator
) -> Array:
    """Turn ideal films (n, 96, 96) into stored pictures, uint8.

    Args:
        film: Attenuation, about 0 to 1.
        portable: 1 for bedside films, shape (n, 1, 1).
        soft: Index of the soft texture that modulates each film's haze.
        scanner: The site's scanner.
        rng: Source of all randomness.
    """
    count = len(film)
    contrast = column(rng, *scanner.contrast, count) * (1 - 0.15 * portable)
    haze = column(rng, *scanner.haze, count)
    film = (film - 0.38) * contrast + 0.42 + scanner.bias
    film = film + haze + haze * texture_bank().soft[soft] * 0.5
    if scanner.grid:
        film = film + scanner.grid * np.cos(np.linspace(-1, 1, SIZE, dtype=np.float32) * 150)
    film = _blur(film, scanner.blur, rng)
    if scanner.sharpen:
        film = film + scanner.sharpen * (film - _local_mean(film))
    film = np.clip(film, 0, 1) ** column(rng, *scanner.gamma, count)
    grain = rng.standard_normal(film.shape, dtype=np.float32)
    film = film + grain * column(rng, *scanner.noise, count) * (1.15 - 0.5 * film)
    _collimate(film, scanner.collimation, rng)
    if scanner.mirrored:
        film = film[:, :, ::-1].copy()
    _burn_markers(film, scanner, rng)
    stored = (np.clip(film, 0, 1) * 255).astype(np.uint8)
    return stored if scanner.native == SIZE else _store_coarsely(stored, scanner.native)


def _blur(film: Array, passes: tuple[int, int], rng: np.random.Generator) -> Array:
    least, most = passes
    for number in range(most):
        chance = 1.0 if number < least else 0.5
        blurred = rng.random(len(film)) < chance
        weight = (0.25 * blurred).astype(np.float32)[:, None, None]
        for axis in (1, 2):
            neighbours = np.roll(film, 1, axis) + np.roll(film, -1, axis)
            film = film * (1 - 2 * weight) + weight * neighbours
    return film


def _local_mean(film: Array) -> Array:
    for step in (1, 2, 3):
        for axis in (1, 2):
            neighbours = np.roll(film, step, axis) + np.roll(film, -step, axis)
            film = film * np.float32(0.5) + np.float32(0.25) * neighbours
    return film


def _collimate(film: Array, chance: float, rng: np.random.Generator) -> None:
    for picture in film:
        if rng.random() >= chance:
            continue
        for axis in (0, 1):
            first, last = (int(width) for width in rng.integers(0, 9, 2))
            lines = np.moveaxis(picture, axis, 0)
            lines[:first] = 0.02
            lines[SIZE - last :] = 0.02


def _burn_markers(film: Array, scanner: Scanner, rng: np.random.Generator) -> None:
    for picture in film:
        if rng.random() >= scanner.marker:
            continue
        right = rng.random() < 0.5
        glyph = _GLYPHS["R" if right else "L"]
        height, width = glyph.shape
        inset = int(rng.integers(7, 11))
        left = inset if right != scanner.mirrored else SIZE - width - inset
        top = int(rng.integers(6, 14))
        patch = picture[top : top + height, left : left + width]
        np.maximum(patch, glyph, out=patch)


def _store_coarsely(stored: Array, native: int) -> Array:
    coarse = (Image.fromarray(p).resize((native, native), Image.Resampling.BOX) for p in stored)
    fine = (p.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in coarse)
    return np.stack([np.asarray(picture) for picture in fine])
