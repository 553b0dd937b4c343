"""Normal anatomy of a frontal chest film, for a whole batch of studies at once.

Coordinates run from -1 to 1, x to the right of the film (the patient's left) and y downwards. One
formula draws both lungs, with the distance from the midline as coordinate and a few parameters that
differ by side, so that a finding can be placed on either side by the sign of x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.phantoms.chance import Drawn, column
from simulations.phantoms.studies import Study
from simulations.phantoms.texture import BANK_SIZE, SIZE, Array, fourth, ramp, texture_bank

TAU = np.float32(2 * np.pi)
RIB_SPACING = np.float32(0.165)
ANTERIOR_RIB_SPACING = np.float32(0.175)


@dataclass(frozen=True)
class Poses(Drawn):
    """How each patient stands before the film.

    Attributes:
        vessels: Index of the vessel tree, (n,).
        soft: Index of the soft texture, (n,).
        rotation: Radians; this and what follows are (n, 1, 1).
        scale: Size on the film.
        right: Shift.
        down: Shift.
        portable: 1 for bedside films, else 0.
        gas: In the stomach.
    """

    vessels: Array
    soft: Array
    rotation: Array
    scale: Array
    right: Array
    down: Array
    portable: Array
    gas: Array


def draw_poses(count: int, portable_share: float, rng: np.random.Generator) -> Poses:
    """Draw the poses of a batch; the order of the draws is part of every picture."""
    return Poses(
        vessels=rng.integers(BANK_SIZE, size=count),
        soft=rng.integers(BANK_SIZE, size=count),
        rotation=column(rng, -0.06, 0.06, count),
        scale=column(rng, 0.9, 1.02, count),
        right=column(rng, -0.05, 0.05, count),
        down=column(rng, -0.05, 0.05, count),
        portable=(rng.random(count) < portable_share).astype(np.float32)[:, None, None],
        gas=column(rng, 0, 0.2, count),
    )


@dataclass
class Film:
    """The layers of a batch of films, each (n, 96, 96) or broadcasting to it.

    Geometry is fixed by ``lay_out``; the layers ``air`` to ``lines`` are what findings draw on.
    """

    anatomy: Array
    poses: Poses
    x: Array
    y: Array
    across: Array  # distance from the midline
    edge: Array  # lateral border of the lung
    dome: Array  # height of the diaphragm's dome
    base: Array  # lower border of the lung
    lung: Array
    body: Array
    heart_size: Array
    rib_phase: Array
    heart: Array
    mediastinum: Array
    ribs: Array
    air: Array
    markings: Array
    opacity: Array
    lines: Array

    def trait(self, index: int, mean: float, spread: float) -> Array:
        """A number of each patient's anatomy, shape (n, 1, 1)."""
        return anatomical_trait(self.anatomy, index, mean, spread)

    @property
    def soft(self) -> Array:
        """Each study's soft texture."""
        return texture_bank().soft[self.poses.soft]

    @property
    def fine(self) -> Array:
        """Each study's fine grain."""
        return texture_bank().fine[self.poses.soft]


def anatomical_trait(anatomy: Array, index: int, mean: float, spread: float) -> Array:
    """``mean`` and a bounded deviation read from the anatomy vectors, shape (n, 1, 1)."""
    deviation = spread * np.clip(anatomy[:, index], -2, 2)
    return (mean + deviation).astype(np.float32)[:, None, None]


def lay_out(studies: Sequence[Study], poses: Poses) -> Film:
    """Place lungs and body of every study; the heart and the ribs are drawn later."""
    anatomy = np.array([study.anatomy for study in studies], np.float32)
    x, y = _coordinates(anatomy, poses)
    across = np.abs(x)
    edge = anatomical_trait(anatomy, 1, 0.80, 0.035) * np.clip(
        1 - ((y - 0.32) / 1.07) ** 2, 1e-4, 1
    ) ** np.float32(0.45)
    left, right = anatomical_trait(anatomy, 2, 0.43, 0.05), anatomical_trait(anatomy, 2, 0.36, 0.05)
    dome = np.where(x > 0, left, right) - 0.08 * poses.portable  # the liver lifts the right dome
    base = dome + 1.1 * (across - 0.36) ** 2  # falls away to a sharp costophrenic angle
    lung = ramp((edge - across) * 28) * ramp((across - 0.12) * 20) * ramp((base - y) * 30)
    half_width = 0.26 + 0.72 * np.clip((y + 0.98) / 0.36, 0, 1) ** 1.5  # neck, then shoulders
    blank = np.zeros_like(lung)
    return Film(
        anatomy=anatomy,
        poses=poses,
        x=x,
        y=y,
        across=across,
        edge=edge,
        dome=dome,
        base=base,
        lung=lung,
        body=ramp((half_width - across) * 16),
        heart_size=anatomical_trait(anatomy, 3, 1.0, 0.06) + 0.1 * poses.portable,
        rib_phase=(y - 0.30 * across * across + 0.02) / RIB_SPACING,
        heart=blank,
        mediastinum=blank,
        ribs=blank,
        air=blank,
        markings=blank,
        opacity=np.zeros_like(lung),
        lines=np.zeros_like(lung),
    )


def _coordinates(anatomy: Array, poses: Poses) -> tuple[Array, Array]:
    """Film coordinates under a small rotation, scale and shift of each patient."""
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    rotation, scale = poses.rotation, poses.scale
    right, down = axis[None, None, :] - poses.right, axis[None, :, None] - poses.down
    x = (right + rotation * down) / scale
    return x, (down - rotation * right) / (scale * anatomical_trait(anatomy, 0, 1.0, 0.04))


def draw_centre(film: Film) -> None:
    """Draw the heart (a tilted ellipse), the mediastinal band and the aortic knob."""
    x, y, size = film.x, film.y, film.heart_size
    right, down = x - 0.09 - 0.05 * size, y - 0.24
    along = (right * 0.86 + down * 0.5) / (0.33 * size)
    thick = (down * 0.86 - right * 0.5) / (0.25 * size)
    film.heart = ramp((1 - along**2 - thick**2) * 4)
    band = ramp((0.15 + 0.03 * (y + 0.2) - film.across) * 24)
    knob = ramp((1 - ((x - 0.13) ** 2 + (y + 0.3) ** 2) / 0.0125) * 2.5)
    film.mediastinum = np.maximum(band, knob)


def draw_ribs(film: Film) -> None:
    """Draw posterior ribs as a periodic bump of ``rib_phase``, anterior ones fainter."""
    y, across = film.y, film.across
    cage = ramp((film.edge + 0.05 - across) * 20) * ramp((0.62 - y) * 12)
    cage = cage * ramp((across - 0.08) * 20)
    posterior = np.clip(np.cos(film.rib_phase * TAU) * 1.8 + 0.3, 0, 1) * 0.10
    phase = (y + 0.42 * across + 0.1) / ANTERIOR_RIB_SPACING
    anterior = np.clip(np.cos(phase * TAU) * 1.6, 0, 1) * 0.05
    film.ribs = cage * (posterior + ramp((across - 0.35) * 8) * anterior)


def fill_lungs(film: Film) -> None:
    """Put air and lung markings wherever lung is not hidden by the heart and the mediastinum."""
    vessels = texture_bank().vessels[film.poses.vessels]
    film.markings = vessels * film.trait(4, 0.17, 0.02) + film.fine * 0.012
    film.air = film.lung * (1 - film.heart) * (1 - film.mediastinum)


def compose(film: Film) -> Array:
    """Add all layers up to the attenuation of an ideal film."""
    x, y, across, body = film.x, film.y, film.across, film.body
    shadow = body * (0.58 + 0.06 * np.clip(across - 0.5, 0, 1)) - 0.44 * film.air
    shadow = shadow + film.air * film.markings + np.minimum(film.opacity, 0.4)
    shadow = shadow + film.ribs * body + film.lines + film.heart * 0.05
    flank = np.maximum(film.edge + 0.04, 0.74 * (y > 0.4))
    shadow = shadow + 0.10 * ramp((y - film.base) * 25) * body * ramp((flank - across) * 8)
    shadow = shadow + _spine_and_clavicles(film)
    bubble = np.exp(-(((x - 0.45) / 0.12) ** 2) - ((y - film.dome - 0.16) / 0.07) ** 2)
    shadow = shadow - film.poses.gas * bubble
    breast = np.exp(-(((across - 0.48) / 0.25) ** 2) - ((y - 0.3) / 0.2) ** 2) * (y < 0.5)
    total: Array = shadow + np.clip(film.trait(5, 0.0, 0.06), 0, 0.1) * breast
    return total


def _spine_and_clavicles(film: Film) -> Array:
    x, y, across, body = film.x, film.y, film.across, film.body
    vertebrae = 0.05 * np.clip(np.cos(y * 44) + 0.4, 0, 1) * ramp((0.07 - across) * 30)
    trachea = 0.13 * ramp((0.033 - np.abs(x - 0.01)) * 40) * ramp((-0.22 - y) * 12) * body
    course = (y + 0.58 + 0.14 * across - 0.2 * (across - 0.4) ** 2) / 0.034
    clavicles = (
        0.13 * np.exp(-fourth(course)) * ramp((across - 0.1) * 25) * ramp((0.72 - across) * 20)
    )
    bones: Array = vertebrae - trachea + clavicles * body
    return bones
