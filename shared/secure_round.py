"""What is summed in a round of training, as site and coordinator both know it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from shared.adapter import AdapterLayout, AdapterUpdate, Factor
from shared.config import JobConfig
from shared.messages import TrainSummary
from shared.parts import Part
from shared.security.canonical import canonical
from shared.security.secagg.vector import Measure, VectorForm

_LARGEST_LOSS: Final = 64.0
"""Nats; a larger loss is summed as this one, so that it does not cost the site its part."""
_LOSSES: Final = ("loss", "validation_loss")

MEASURES: Final = (
    *(Measure(name, 2.0**-16, _LARGEST_LOSS) for name in _LOSSES),
    *(Measure(f"with_{name}", 1.0, 1.0) for name in _LOSSES),
    Measure("clipped", 1.0, 1.0),
)
"""Losses, how many sites measured each, and how many changes were scaled down."""

EXPECTED: Final = Measure("expected", 1.0, 2.0**20)
"""Patients that the sites' steps are taken to have; where sites give noised sums of gradients."""


def measures_in(job: JobConfig) -> tuple[Measure, ...]:
    """Return what is summed beside the sites' changes."""
    return (*MEASURES, EXPECTED) if job.privacy.noised_together else MEASURES


def form_of(
    job: JobConfig, layout: AdapterLayout, factors: Sequence[Factor], sites: int
) -> VectorForm:
    """Return the form of a round's vectors.

    Args:
        job: Says what is summed.
        layout: Of the run, at its full rank.
        factors: Which the sites train.
        sites: How many take part.
    """
    names = layout.names(factors)
    places = tuple((name, layout.towers[name], layout.shapes[name]) for name in names)
    return VectorForm(places, measures_in(job), sites)


def measures_of(summary: TrainSummary) -> dict[str, float]:
    """Return what a site puts into the sum of its summary."""
    found = {"clipped": float(summary.clipped)}
    for name in _LOSSES:
        loss: float | None = getattr(summary, name)
        found[name] = 0.0 if loss is None else max(-_LARGEST_LOSS, min(loss, _LARGEST_LOSS))
        found[f"with_{name}"] = float(loss is not None)
    if summary.expected is not None:
        found[EXPECTED.name] = float(summary.expected)
    return found


def means_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the mean losses over the sites in a sum that measured them, and how many clipped."""
    means = {
        name: metrics[name] / metrics[f"with_{name}"]
        for name in _LOSSES
        if metrics[f"with_{name}"] > 0
    }
    return {**means, "clipped": metrics["clipped"]}


def per_patient(total: AdapterUpdate) -> AdapterUpdate:
    """Return a sum of noised gradients as one whose mean is over patients, and not over sites.

    A patient without a record of a tower has no gradient of it, and counts all the same: the mean
    is that of the loss over all patients.
    """
    expected = round(total.metrics[EXPECTED.name])
    return replace(total, weights=dict.fromkeys(total.weights, expected))


def adapter_digest(parts: Mapping[Part, str]) -> str:
    """Return one digest for those of all parts of a shared adapter."""
    said = {str(part): digest for part, digest in parts.items()}
    return hashlib.sha256(canonical("secure-sum adapter 1", said)).hexdigest()
