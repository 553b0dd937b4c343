"""Median of every coordinate (Yin et al., 2018, https://arxiv.org/abs/1803.01498).

Withstands hostile sites as long as they are fewer than half of those that trained a tower. Where
honest sites differ much it leans towards the middle one instead of their mean. Every site counts
once. Needs every update at once: memory grows with the cohort.
"""

from collections.abc import Iterable

import numpy as np

from server.aggregation.gathered import Gathered
from shared.adapter import AdapterLayout, AdapterUpdate, Array


def coordinate_median(layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
    """Return the median of every coordinate; of an even number, the mean of the middle two."""
    gathered = Gathered.of(layout, updates)
    return {
        name: np.median(gathered.changes(name), axis=0).astype(np.float32)
        for tower in gathered.towers()
        for name in gathered.names(tower)
    }
