"""Trimmed mean of every coordinate (Yin et al., 2018, https://arxiv.org/abs/1803.01498).

Of every number the f largest and the f smallest are left out and the rest is averaged, so with
at most f hostile sites the result lies within what honest sites sent. Every site counts once.
Needs every update at once: memory grows with the cohort.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from server.aggregation.gathered import Gathered
from shared.adapter import AdapterLayout, AdapterUpdate, Array


@dataclass(frozen=True)
class TrimmedMean:
    """Leaves out extremes, coordinate by coordinate.

    Attributes:
        hostile: f, how many sites are left out at either end.
    """

    hostile: int

    def __call__(self, layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
        """Return the trimmed mean of every coordinate.

        Raises:
            QuorumError: If fewer than 2 f + 1 sites trained a tower.
        """
        gathered = Gathered.of(layout, updates)
        gathered.require("trimmed-mean", 2 * self.hostile + 1)
        combined: dict[str, Array] = {}
        for tower in gathered.towers():
            for name in gathered.names(tower):
                ordered = np.sort(gathered.changes(name), axis=0)
                kept = ordered[self.hostile : len(ordered) - self.hostile]
                combined[name] = kept.mean(axis=0).astype(np.float32)
        return combined
