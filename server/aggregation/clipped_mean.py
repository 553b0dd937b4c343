"""Norm clipping: changes are cut to the median norm.

After Sun et al., 2019, https://arxiv.org/abs/1911.07963.

The weighted mean of changes of which none is longer than the median norm of the round. A hostile
site can still choose its direction, so the damage of one round is bounded by its weight times
that norm; ``aggregate.max_weight`` bounds the weight. The bound follows the round, where
``aggregate.clip_norm`` is fixed for the run. Needs every update at once: memory grows with the
cohort.
"""

from collections.abc import Iterable

import numpy as np

from server.aggregation.gathered import Gathered
from shared.adapter import AdapterLayout, AdapterUpdate, Array


def clipped_mean(layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
    """Return the weighted mean of each tower's changes, none longer than their median norm."""
    gathered = Gathered.of(layout, updates)
    combined: dict[str, Array] = {}
    for tower in gathered.towers():
        norms = gathered.norms(tower)
        limit = np.median(norms)
        cut = np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit)
        combined |= gathered.combination(tower, gathered.shares(tower) * cut)
    return combined
