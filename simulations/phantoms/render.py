"""Pictures of studies: anatomy, then findings, then the scanner."""

from collections.abc import Sequence

import numpy as np

from simulations.phantoms.anatomy import compose, draw_centre, draw_ribs, fill_lungs, lay_out
from simulations.phantoms.findings import (
    HEART_CHANGES,
    LUNG_CHANGES,
    OVERLAYS,
    affected,
    displace_ribs,
)
from simulations.phantoms.scanner import Scanner, expose
from simulations.phantoms.studies import Study
from simulations.phantoms.texture import SIZE, Array

BATCH = 64


def render(studies: Sequence[Study], scanner: Scanner, rng: np.random.Generator) -> Array:
    """Expose one batch of studies.

    Returns:
        Grey pictures, uint8, shape (n, 96, 96).
    """
    film = lay_out(studies, scanner.portable, rng)
    for name, change in HEART_CHANGES.items():
        if has := affected(studies, name):
            change(film, has)
    draw_centre(film)
    if broken := affected(studies, "fracture"):
        displace_ribs(film, broken)
    draw_ribs(film)
    fill_lungs(film)
    for name, change in LUNG_CHANGES.items():
        if has := affected(studies, name):
            change(film, has)
    shadow = compose(film, rng)
    for name, overlay in OVERLAYS.items():
        if has := affected(studies, name):
            overlay(film, has, shadow)
    return expose(shadow, film.portable, film.vessel_index, scanner, rng)


def render_all(studies: Sequence[Study], scanner: Scanner, seed: Sequence[int]) -> Array:
    """Expose any number of studies, in batches that fit the processor's cache.

    Every batch has its own generator, derived from ``seed`` and its place.
    """
    batches = [
        render(studies[start : start + BATCH], scanner, np.random.default_rng([*seed, start]))
        for start in range(0, len(studies), BATCH)
    ]
    return np.concatenate(batches) if batches else np.zeros((0, SIZE, SIZE), np.uint8)
