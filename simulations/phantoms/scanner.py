"""The scanner: what turns an ideal film into the picture that a site stores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from simulations.phantoms.chance import Drawn, column
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


Blades = tuple[int, int, int, int]
"""Lines that are cut at the top, at the bottom, on the left and on the right."""


@dataclass(frozen=True)
class Marker:
    """A side marker: its letter, its distance from the border, and its first line."""

    letter: str
    inset: int
    top: int


@dataclass(frozen=True)
class Exposures(Drawn):
    """How each film is exposed; arrays are (n, 1, 1) unless it says otherwise.

    Attributes:
        contrast: Window width, as a factor.
        haze: Veiling glare.
        blur: Weight of the neighbours in every pass of the blur, (n, passes).
        gamma: Exponent of the display curve.
        grain: Noise of unit scale, (n, 96, 96).
        noise: Its standard deviation.
        blades: Per film what collimation cuts, or ``None``.
        markers: Per film its marker, or ``None``.
    """

    contrast: Array
    haze: Array
    blur: Array
    gamma: Array
    grain: Array
    noise: Array
    blades: list[Blades | None]
    markers: list[Marker | None]


def draw_exposures(scanner: Scanner, count: int, rng: np.random.Generator) -> Exposures:
    """Draw the exposures of a batch; the order of the draws is part of every picture."""
    return Exposures(
        contrast=column(rng, *scanner.contrast, count),
        haze=column(rng, *scanner.haze, count),
        blur=_draw_blur(scanner.blur, count, rng),
        gamma=column(rng, *scanner.gamma, count),
        grain=rng.standard_normal((count, SIZE, SIZE), dtype=np.float32),
        noise=column(rng, *scanner.noise, count),
        blades=[_draw_blades(scanner.collimation, rng) for _ in range(count)],
        markers=[_draw_marker(scanner.marker, rng) for _ in range(count)],
    )


def _draw_blur(passes: tuple[int, int], count: int, rng: np.random.Generator) -> Array:
    least, most = passes
    weights = np.zeros((count, most), np.float32)
    for number in range(most):
        weights[:, number] = 0.25 * (rng.random(count) < (1.0 if number < least else 0.5))
    return weights


def _draw_blades(chance: float, rng: np.random.Generator) -> Blades | None:
    if rng.random() >= chance:
        return None
    (top, bottom), (left, right) = rng.integers(0, 9, 2), rng.integers(0, 9, 2)
    return int(top), int(bottom), int(left), int(right)


def _draw_marker(chance: float, rng: np.random.Generator) -> Marker | None:
    if rng.random() >= chance:
        return None
    letter = "R" if rng.random() < 0.5 else "L"
    return Marker(letter, inset=int(rng.integers(7, 11)), top=int(rng.integers(6, 14)))


def expose(
    film: Array, portable: Array, soft: Array, scanner: Scanner, exposures: Exposures
) -> Array:
    """Turn ideal films (n, 96, 96) into stored pictures, uint8.

    Args:
        film: Attenuation, about 0 to 1.
        portable: 1 for bedside films, shape (n, 1, 1).
        soft: Index of the soft texture that modulates each film's haze.
        scanner: The site's scanner.
        exposures: What was drawn for these films.
    """
    contrast = exposures.contrast * (1 - 0.15 * portable)
    haze = exposures.haze
    film = (film - 0.38) * contrast + 0.42 + scanner.bias
    film = film + haze + haze * texture_bank().soft[soft] * 0.5
    if scanner.grid:
        film = film + scanner.grid * np.cos(np.linspace(-1, 1, SIZE, dtype=np.float32) * 150)
    film = _blur(film, exposures.blur)
    if scanner.sharpen:
        film = film + scanner.sharpen * (film - _local_mean(film))
    film = np.clip(film, 0, 1) ** exposures.gamma
    film = film + exposures.grain * exposures.noise * (1.15 - 0.5 * film)
    _collimate(film, exposures.blades)
    if scanner.mirrored:
        film = film[:, :, ::-1].copy()
    _burn_markers(film, exposures.markers, mirrored=scanner.mirrored)
    stored = (np.clip(film, 0, 1) * 255).astype(np.uint8)
    return stored if scanner.native == SIZE else _store_coarsely(stored, scanner.native)


def _blur(film: Array, weights: Array) -> Array:
    for weight in weights.T[:, :, None, None]:
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


def _collimate(film: Array, blades: Sequence[Blades | None]) -> None:
    for picture, cut in zip(film, blades, strict=True):
        if cut is not None:
            top, bottom, left, right = cut
            picture[:top] = picture[SIZE - bottom :] = 0.02
            picture[:, :left] = picture[:, SIZE - right :] = 0.02


def _burn_markers(film: Array, markers: Sequence[Marker | None], *, mirrored: bool) -> None:
    for picture, marker in zip(film, markers, strict=True):
        if marker is not None:
            glyph = _GLYPHS[marker.letter]
            height, width = glyph.shape
            at_left = (marker.letter == "R") != mirrored
            left = marker.inset if at_left else SIZE - width - marker.inset
            patch = picture[marker.top : marker.top + height, left : left + width]
            np.maximum(patch, glyph, out=patch)


def _store_coarsely(stored: Array, native: int) -> Array:
    coarse = (Image.fromarray(p).resize((native, native), Image.Resampling.BOX) for p in stored)
    fine = (p.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in coarse)
    return np.stack([np.asarray(picture) for picture in fine])
