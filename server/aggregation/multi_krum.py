"""Multi-Krum: the mean of the changes with the nearest neighbours.

Blanchard et al., 2017, https://papers.nips.cc/paper/6617.

Of n sites that trained a tower, with at most f hostile, each is scored by the sum of its squared
distances to its n - f - 2 nearest; the n - f - 2 best scores are averaged. Its guarantee needs
n >= 2 f + 3, and fewer sites are refused. Every site counts once. Needs every update at once:
memory grows with the cohort.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from server.aggregation.gathered import Gathered
from server.aggregation.lowrank import Matrix
from shared.adapter import AdapterLayout, AdapterUpdate, Array


@dataclass(frozen=True)
class MultiKrum:
    """Averages the changes in the densest company.

    Attributes:
        hostile: f, how many sites may be hostile or broken.
    """

    hostile: int

    def __call__(self, layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
        """Return the mean of each tower's chosen changes.

        Raises:
            QuorumError: If fewer than 2 f + 3 sites trained a tower.
        """
        gathered = Gathered.of(layout, updates)
        gathered.require("multi-krum", 2 * self.hostile + 3)
        combined: dict[str, Array] = {}
        for tower in gathered.towers():
            chosen = choose(gathered.square_distances(tower), self.hostile)
            combined |= gathered.combination(tower, chosen / chosen.sum())
        return combined


def choose(square_distances: Matrix, hostile: int) -> Matrix:
    """Return one for each point that is chosen and zero for the others, (n,).

    Args:
        square_distances: (n, n), in order of the sites' names, which breaks ties.
        hostile: f.
    """
    count = len(square_distances)
    neighbours = count - hostile - 2
    # The nearest of all is the point itself, at distance zero.
    scores = np.sort(square_distances, axis=1)[:, 1 : neighbours + 1].sum(axis=1)
    chosen = np.zeros(count)
    chosen[np.argsort(scores, kind="stable")[:neighbours]] = 1.0
    return chosen
