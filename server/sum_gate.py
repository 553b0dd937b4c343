"""The gate of secure rounds: a sum that honest sites cannot have made never reaches a rule.

Which site spoiled it nobody can tell; that is what the masks are for. What a single site can do
inside the bounds of the sum is what it could do with a mean of all: see docs/privacy.md.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from server.validation import METRICS, OUT_OF_RANGE, TOO_LONG, WRONG_WEIGHTS
from shared.adapter import AdapterLayout, AdapterUpdate, Tower
from shared.config import JobConfig
from shared.privacy.noise import BITS
from shared.secure_round import EXPECTED, measures_in
from shared.security.secagg.vector import Measure


def objection_to_sum(
    update: AdapterUpdate,
    layout: AdapterLayout,
    weights: Mapping[Tower, int],
    job: JobConfig,
    sites: int,
) -> str | None:
    """Return the reason code why a sum does not count, or ``None``.

    Args:
        update: The sum.
        layout: Of the run.
        weights: Sum of the weights that the sites in it were given.
        job: What the sites were asked for.
        sites: How many are in it.
    """
    if dict(update.weights) != dict(weights):
        return WRONG_WEIGHTS
    reason = _of_measures(update.metrics, measures_in(job), sites)
    if reason is not None:
        return reason
    # Of one site's change, and so of their mean in each tower.
    clip_norm = job.aggregate.clip_norm
    if job.privacy.noised_together:
        clip_norm = _longest_noised(update, job, sites)
    squares: dict[Tower, float] = {}
    rounding: dict[Tower, float] = {}
    for name, total in update.delta.items():
        tower = layout.tower_of(name)
        unit = 1 / (weights[tower] * update.scale)
        steps = total.view(np.int32).astype(np.float64)
        if steps.size and np.abs(steps).max() > clip_norm / unit + sites:
            return OUT_OF_RANGE
        squares[tower] = squares.get(tower, 0.0) + float(np.square(steps).sum()) * unit**2
        # Every site rounds every number by half a step at most.
        rounding[tower] = rounding.get(tower, 0.0) + steps.size * (sites * unit / 2) ** 2
    for tower, square in squares.items():
        if math.sqrt(square) > clip_norm * (1 + 1e-6) + math.sqrt(rounding[tower]):
            return TOO_LONG
    return None


def _longest_noised(update: AdapterUpdate, job: JobConfig, sites: int) -> float:
    """Return how long the mean of some sites' noised sums of gradients is at most, by far.

    So long as all patients of a step could agree, and some standard deviations more patients than
    are expected; and its noise, at the most that the grid has room for.
    """
    expected = update.metrics[EXPECTED.name]
    patients = expected + 8 * math.sqrt(expected) + 8 * sites
    entries = sum(values.size for values in update.delta.values())
    noise = 2.0**BITS / update.scale * (math.sqrt(entries) + 10) / math.sqrt(sites)
    return job.privacy.clip_norm * patients / sites + noise


def _of_measures(
    metrics: Mapping[str, float], measures: Sequence[Measure], sites: int
) -> str | None:
    for measure in measures:
        least = -measure.largest if measure.name in ("loss", "validation_loss") else 0.0
        if not sites * least - sites <= metrics[measure.name] <= sites * measure.largest + sites:
            return METRICS
    counted = [value for name, value in metrics.items() if name.startswith("with_")]
    return METRICS if any(not 0 <= count <= sites for count in counted) else None
