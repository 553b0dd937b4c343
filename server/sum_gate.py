"""The gate of secure rounds: a sum that honest sites cannot have made never reaches a rule.

Which site spoiled it nobody can tell; that is what the masks are for. What a single site can do
inside the bounds of the sum is what it could do with a mean of all: see docs/privacy.md.
"""

import math
from collections.abc import Mapping

import numpy as np

from server.validation import METRICS, OUT_OF_RANGE, TOO_LONG, WRONG_WEIGHTS
from shared.adapter import AdapterLayout, AdapterUpdate, Tower
from shared.secure_round import MEASURES


def objection_to_sum(
    update: AdapterUpdate,
    layout: AdapterLayout,
    weights: Mapping[Tower, int],
    clip_norm: float,
    sites: int,
) -> str | None:
    """Return the reason code why a sum does not count, or ``None``.

    Args:
        update: The sum.
        layout: Of the run.
        weights: Sum of the weights that the sites in it were given.
        clip_norm: The largest L2 norm of one site's change, and so of their mean in each tower.
        sites: How many are in it.
    """
    if dict(update.weights) != dict(weights):
        return WRONG_WEIGHTS
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
    return _of_measures(update.metrics, sites)


def _of_measures(metrics: Mapping[str, float], sites: int) -> str | None:
    for measure in MEASURES:
        least = -measure.largest if measure.name in ("loss", "validation_loss") else 0.0
        if not sites * least - sites <= metrics[measure.name] <= sites * measure.largest + sites:
            return METRICS
    counted = [value for name, value in metrics.items() if name.startswith("with_")]
    return METRICS if any(not 0 <= count <= sites for count in counted) else None
