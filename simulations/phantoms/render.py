"""Pictures of studies: anatomy, then findings, then the scanner."""

from collections.abc import Sequence

import numpy as np

from simulations.phantoms.anatomy import (
    Poses,
    compose,
    draw_centre,
    draw_poses,
    draw_ribs,
    fill_lungs,
    lay_out,
)
from simulations.phantoms.findings import (
    HEART_CHANGES,
    LUNG_CHANGES,
    OVERLAYS,
    affected,
    displace_ribs,
)
from simulations.phantoms.scanner import Exposures, Scanner, draw_exposures, expose
from simulations.phantoms.studies import Study
from simulations.phantoms.texture import SIZE, Array

BATCH = 64
"""Films that draw from one generator, which makes it part of every picture."""

_AT_ONCE = 8
"""Films that are painted at once: all their layers fit the processor's cache."""


def render(studies: Sequence[Study], scanner: Scanner, rng: np.random.Generator) -> Array:
    """Expose one batch of studies.

    Returns:
        Grey pictures, uint8, shape (n, 96, 96).
    """
    count = len(studies)
    poses = draw_poses(count, scanner.portable, rng)
    exposures = draw_exposures(scanner, count, rng)
    parts = [slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE)]
    films = [_paint(studies[p], poses.of(p), exposures.of(p), scanner) for p in parts]
    return np.concatenate(films)


def _paint(studies: Sequence[Study], poses: Poses, exposures: Exposures, scanner: Scanner) -> Array:
    film = lay_out(studies, poses)
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
    shadow = compose(film)
    for name, overlay in OVERLAYS.items():
        if has := affected(studies, name):
            overlay(film, has, shadow)
    return expose(shadow, poses.portable, poses.vessels, scanner, exposures)


def render_all(studies: Sequence[Study], scanner: Scanner, seed: Sequence[int]) -> Array:
    """Expose any number of studies.

    Every batch has its own generator, derived from ``seed`` and its place.
    """
    batches = [
        render(studies[start : start + BATCH], scanner, np.random.default_rng([*seed, start]))
        for start in range(0, len(studies), BATCH)
    ]
    return np.concatenate(batches) if batches else np.zeros((0, SIZE, SIZE), np.uint8)
