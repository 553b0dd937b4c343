"""Latent studies: what is true of a patient before a film is exposed or a report is dictated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PUBLIC_FINDINGS = (
    "effusion",
    "pneumothorax",
    "consolidation",
    "atelectasis",
    "cardiomegaly",
    "nodule",
    "edema",
)
NOVEL_FINDINGS = ("pacemaker", "catheter", "fracture", "hernia", "cavity")
FINDINGS = PUBLIC_FINDINGS + NOVEL_FINDINGS
SIDED = frozenset(FINDINGS) - {"cardiomegaly", "edema", "pacemaker", "hernia"}
ZONED = frozenset({"consolidation", "nodule", "cavity", "atelectasis"})
CHRONIC = frozenset({"cardiomegaly", "nodule", "pacemaker", "fracture", "hernia", "cavity"})

BASE_RATES: Mapping[str, float] = {
    "effusion": 0.22,
    "pneumothorax": 0.12,
    "consolidation": 0.20,
    "atelectasis": 0.15,
    "cardiomegaly": 0.18,
    "nodule": 0.12,
    "edema": 0.12,
}

ANATOMY_SIZE = 12
SHAPE_SIZE = 6
STUDIES_PER_PATIENT = (1, 1, 1, 2, 3, 4)
HEALTHY_SHARE = 0.3
HEALTHY_FACTOR, SICK_FACTOR = 0.25, 1.25  # about 30 % of the studies end up normal


@dataclass(frozen=True)
class Finding:
    """One finding of one study.

    Attributes:
        side: 0 right, 1 left, as the patient has them (left is on the right of an unmirrored film).
        zone: 0 upper, 1 mid, 2 lower.
        severity: Between 0 and 1; size and conspicuity follow it.
        shape: ``SHAPE_SIZE`` numbers in (0, 1) for position and form.
    """

    side: int
    zone: int
    severity: float
    shape: NDArray[Any]


@dataclass(frozen=True)
class Study:
    """Everything a picture and a report of one examination are made from."""

    patient: str
    anatomy: NDArray[Any]
    findings: Mapping[str, Finding]


def draw_studies(
    count: int, rates: Mapping[str, float], rng: np.random.Generator, *, prefix: str = "p"
) -> list[Study]:
    """Draw ``count`` studies of patients with one to four studies each.

    Anatomy and chronic findings persist within a patient; acute findings come and go.

    Args:
        count: Number of studies; the last patient may be cut short.
        rates: Prevalence of each finding; a finding that is not named never occurs.
        rng: Source of all randomness.
        prefix: Beginning of every patient's name.
    """
    studies: list[Study] = []
    patient = 0
    while len(studies) < count:
        visits = int(rng.choice(STUDIES_PER_PATIENT))
        anatomy = rng.standard_normal(ANATOMY_SIZE)
        factor = HEALTHY_FACTOR if rng.random() < HEALTHY_SHARE else SICK_FACTOR
        chronic: dict[str, Finding] = {}
        for visit in range(min(visits, count - len(studies))):
            findings = _draw_findings(rates, factor, chronic, rng, first=visit == 0)
            chronic = {name: found for name, found in findings.items() if name in CHRONIC}
            pose = anatomy + 0.25 * rng.standard_normal(ANATOMY_SIZE)
            studies.append(Study(f"{prefix}-{patient:05d}", pose, findings))
        patient += 1
    return studies


def _draw_findings(
    rates: Mapping[str, float],
    factor: float,
    chronic: Mapping[str, Finding],
    rng: np.random.Generator,
    *,
    first: bool,
) -> dict[str, Finding]:
    findings: dict[str, Finding] = {}
    for name in FINDINGS:
        if name in CHRONIC and not first:
            if name in chronic:
                findings[name] = chronic[name]
        elif rng.random() < rates.get(name, 0.0) * factor:
            side, zone = int(rng.integers(2)), int(rng.integers(3))
            findings[name] = Finding(side, zone, float(rng.random()), rng.random(SHAPE_SIZE))
    return findings
