"""How each finding changes a film. Every function draws on the studies that have the finding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.phantoms.anatomy import Film
from simulations.phantoms.studies import Study
from simulations.phantoms.texture import Array, fourth, ramp

ZONE_HEIGHTS = np.array([-0.38, -0.08, 0.2], np.float32)
LEAD_COURSE = ((0.22, -0.42), (0.06, -0.26), (0.04, 0.14), (0.25, 0.27))


@dataclass(frozen=True)
class Affected:
    """The studies of a batch that have one finding, as columns of shape (m, 1, 1).

    Attributes:
        rows: Their places in the batch.
        sign: 1 on the right of the film (the patient's left), -1 on the other side.
        height: y of the finding's zone.
        severity: Between 0 and 1.
        shape: The shape numbers, (m, 6).
    """

    rows: Array
    sign: Array
    height: Array
    severity: Array
    shape: Array

    def draw(self, index: int) -> Array:
        """One of the shape numbers as a column."""
        return self.shape[:, index, None, None]


def affected(studies: Sequence[Study], name: str) -> Affected | None:
    """Collect the studies with finding ``name``, or None if there are none."""
    rows = [row for row, study in enumerate(studies) if name in study.findings]
    if not rows:
        return None
    found = [studies[row].findings[name] for row in rows]

    def column(values: list[float]) -> Array:
        return np.array(values, np.float32)[:, None, None]

    return Affected(
        rows=np.array(rows),
        sign=column([finding.side * 2.0 - 1.0 for finding in found]),
        height=column([float(ZONE_HEIGHTS[finding.zone]) for finding in found]),
        severity=column([finding.severity for finding in found]),
        shape=np.array([finding.shape for finding in found], np.float32),
    )


def _same_side(film: Film, has: Affected) -> Array:
    """1 on the finding's half of the film."""
    return ramp(film.x[has.rows] * has.sign * 40)


# ---------------------------------------------------------------- before heart and ribs are drawn


def enlarge_heart(film: Film, has: Affected) -> None:
    """Cardiomegaly: a larger cardiothoracic ratio."""
    film.heart_size[has.rows] += 0.09 + 0.36 * has.severity


def congest_heart(film: Film, has: Affected) -> None:
    """Edema comes with a slightly larger heart."""
    film.heart_size[has.rows] += 0.1 * has.severity


def _fracture_site(has: Affected) -> tuple[Array, Array]:
    return has.sign * (0.50 + 0.14 * has.draw(0)), -0.2 + 0.5 * has.draw(1)


def displace_ribs(film: Film, has: Affected) -> None:
    """Fracture: the ribs beyond the break are shifted by about half a space."""
    rows = has.rows
    x, y = _fracture_site(has)
    reach = np.abs(film.x[rows] - x - has.sign * 0.09) / 0.09
    fragment = np.clip(1 - np.maximum(reach, np.abs(film.y[rows] - y) / 0.16), 0, 1)
    film.rib_phase[rows] += np.minimum(fragment * 6, 1) * (0.45 + 0.1 * has.severity)


# ---------------------------------------------------------------- on the layers of the lung


def draw_callus(film: Film, has: Affected) -> None:
    """Fracture: a bright knot at the break."""
    rows, severity = has.rows, has.severity
    x, y = _fracture_site(has)
    distance = (film.x[rows] - x) ** 2 + (film.y[rows] - y) ** 2
    knot = np.exp(-distance / (0.0025 + 0.0025 * severity))
    inside = ramp((film.edge[rows] + 0.06 - film.across[rows]) * 20)
    film.ribs[rows] += inside * (0.15 + 0.12 * severity) * knot


def draw_edema(film: Film, has: Affected) -> None:
    """Bilateral haze about the hila, stronger vessels."""
    rows, severity = has.rows, has.severity
    out, down = (film.across[rows] - 0.34) / 0.26, (film.y[rows] - 0.02) / 0.42
    butterfly = np.exp(-fourth(out) - fourth(down))
    haze = butterfly * (0.75 + 0.2 * film.soft[rows]) * (1 + 0.35 * film.fine[rows])
    film.markings[rows] = film.markings[rows] * (1 + 0.2 * severity) + film.lung[rows] * haze * (
        0.05 + 0.24 * severity
    )


def draw_consolidation(film: Film, has: Affected) -> None:
    """A cloud with a ragged border."""
    rows, severity = has.rows, has.severity
    x = has.sign * (0.34 + 0.2 * has.draw(0))
    y = has.height + 0.08 * (has.draw(1) - 0.5)
    distance = ((film.x[rows] - x) / (0.15 + 0.13 * severity)) ** 2
    distance = distance + ((film.y[rows] - y) / (0.13 + 0.10 * severity)) ** 2
    cloud = np.clip(1.5 - distance + 0.45 * film.soft[rows], 0, 1)
    film.opacity[rows] += film.lung[rows] * _same_side(film, has) * cloud * (0.08 + 0.2 * severity)


def draw_atelectasis(film: Film, has: Affected) -> None:
    """A thin sloping band."""
    rows, severity = has.rows, has.severity
    x = film.x[rows] - has.sign * (0.38 + 0.12 * has.draw(0))
    y = film.y[rows] - (has.height * 0.8 + 0.06) - (has.draw(1) - 0.5) * 0.8 * x
    band = np.exp(-((y / (0.018 + 0.018 * severity)) ** 2))
    extent = ramp((0.13 + 0.12 * severity - np.abs(x)) * 20)
    film.opacity[rows] += film.lung[rows] * band * extent * (0.19 + 0.14 * severity)


def _distance(film: Film, has: Affected, x: Array, y: Array) -> Array:
    distance: Array = np.sqrt((film.x[has.rows] - x) ** 2 + (film.y[has.rows] - y) ** 2)
    return distance


def draw_nodule(film: Film, has: Affected) -> None:
    """A small round opacity, about two to four pixels in radius."""
    x = has.sign * (0.3 + 0.3 * has.draw(0))
    y = has.height + 0.1 * (has.draw(1) - 0.5)
    disc = ramp((0.036 + 0.05 * has.severity - _distance(film, has, x, y)) * 40)
    film.opacity[has.rows] += film.lung[has.rows] * disc * (0.23 + 0.1 * has.draw(2))


def draw_cavity(film: Film, has: Affected) -> None:
    """A thick ring with air inside and a faint halo."""
    rows = has.rows
    x = has.sign * (0.33 + 0.2 * has.draw(0))
    y = has.height + 0.06 * (has.draw(1) - 0.5)
    radius = 0.08 + 0.06 * has.severity
    distance = _distance(film, has, x, y) + 0.008 * film.soft[rows]
    ring = np.exp(-(((distance - radius) / 0.022) ** 2)) * 0.26
    hole = 0.1 * ramp((radius - distance) * 30)
    halo = 0.07 * np.exp(-((distance / (2.2 * radius)) ** 2))
    film.opacity[rows] += film.lung[rows] * (ring - hole + halo)


def draw_pneumothorax(film: Film, has: Affected) -> None:
    """A visceral line, no markings beyond it, a slightly denser lung within."""
    rows, severity = has.rows, has.severity
    depth = np.maximum(film.across[rows] / film.edge[rows], -film.y[rows] / 0.80)
    line = 1 - 0.06 - 0.28 * severity
    extent = ramp((0.25 + 0.2 * severity - film.y[rows]) * 14)
    region = _same_side(film, has) * film.lung[rows] * extent
    beyond = ramp((depth - line) * 30)
    film.markings[rows] *= 1 - region * beyond
    film.opacity[rows] -= region * beyond * 0.07
    film.opacity[rows] += region * (1 - beyond) * 0.05 * severity
    film.lines[rows] += region * np.exp(-(((depth - line) / 0.018) ** 2)) * 0.15


def draw_effusion(film: Film, has: Affected) -> None:
    """Fluid that rises from the base with a meniscus at the chest wall."""
    rows, y, across = has.rows, film.y[has.rows], film.across[has.rows]
    meniscus = 0.28 * np.clip((across - 0.3) / 0.45, 0, 1) ** 3
    level = film.dome[rows] + 0.17 - 0.62 * has.severity**1.2 - meniscus
    fluid = ramp((y - level) * 16) * _same_side(film, has) * ramp((0.85 - y) * 10)
    fluid = fluid * ramp((film.edge[rows] - across) * 28) * ramp((across - 0.12) * 20)
    film.air[rows] *= 1 - 0.93 * fluid


# ---------------------------------------------------------------- on the composed film


def draw_hernia(film: Film, has: Affected, shadow: Array) -> None:
    """A ring behind the heart with an air-fluid level."""
    rows = has.rows
    radius = 0.09 + 0.06 * has.severity
    x, y = film.x[rows], film.y[rows]
    distance = np.sqrt((x - 0.06) ** 2 + ((y - 0.33) / 0.9) ** 2)
    inside = ramp((radius - distance) * 40)
    wall = 0.09 * np.exp(-(((distance - radius) / 0.02) ** 2))
    shadow[rows] += wall - 0.17 * inside * ramp((0.34 - y) * 40) + 0.05 * inside


def draw_pacemaker(film: Film, has: Affected, shadow: Array) -> None:
    """A can under the patient's left clavicle and a lead to the apex of the heart."""
    rows, x, y = has.rows, film.x[has.rows], film.y[has.rows]
    can_x, can_y = 0.55 + 0.08 * (has.draw(0) - 0.5), np.float32(-0.5)
    can = ramp((1 - fourth((x - can_x) / 0.12) - fourth((y - can_y) / 0.09)) * 5)
    lead = np.zeros_like(x)
    start: tuple[Array | np.float32 | float, np.float32 | float] = (can_x, can_y)
    for end in LEAD_COURSE:
        step_x, step_y = end[0] - start[0], end[1] - start[1]
        along = (x - start[0]) * step_x + (y - start[1]) * step_y
        along = np.clip(along / (step_x**2 + step_y**2), 0, 1)
        off_x, off_y = x - start[0] - along * step_x, y - start[1] - along * step_y
        lead = np.maximum(lead, ramp((0.020 - np.sqrt(off_x**2 + off_y**2)) * 40))
        start = end
    shadow[rows] = shadow[rows] * (1 - 0.9 * can) + 0.95 * can + 0.27 * lead


def draw_catheter(film: Film, has: Affected, shadow: Array) -> None:
    """A jugular line down to the superior vena cava."""
    rows, x, y = has.rows, film.x[has.rows], film.y[has.rows]
    course = -0.07 + (has.sign * 0.24 + 0.07) * np.clip((-0.42 - y) / 0.45, 0, 1) ** 0.8
    line = 0.17 * np.exp(-(((x - course) / 0.017) ** 2))
    shadow[rows] += line * ramp((0.12 * has.draw(0) - y) * 30)


HEART_CHANGES: dict[str, Callable[[Film, Affected], None]] = {
    "cardiomegaly": enlarge_heart,
    "edema": congest_heart,
}
LUNG_CHANGES: dict[str, Callable[[Film, Affected], None]] = {
    "fracture": draw_callus,
    "edema": draw_edema,
    "consolidation": draw_consolidation,
    "atelectasis": draw_atelectasis,
    "nodule": draw_nodule,
    "cavity": draw_cavity,
    "pneumothorax": draw_pneumothorax,
    "effusion": draw_effusion,
}
OVERLAYS: dict[str, Callable[[Film, Affected, Array], None]] = {
    "hernia": draw_hernia,
    "pacemaker": draw_pacemaker,
    "catheter": draw_catheter,
}
