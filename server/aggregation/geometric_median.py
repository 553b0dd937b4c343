"""RFA: the geometric median of the changes.

Pillutla et al., 2022, https://arxiv.org/abs/1912.13445.

The point with the least weighted sum of distances to the sites' changes, by the smoothed
Weiszfeld algorithm. If hostile sites weigh the share t < 1/2 and all honest changes lie within
R of some point, so does the median within ``2 (1 - t) / (1 - 2 t) R`` of it. Each tower is a
space of its own. Where one factor is trained and the other is orthonormal, distances between
changes are those between the products. Needs every update at once: memory grows with the cohort.
"""

from collections.abc import Iterable

import numpy as np

from server.aggregation.gathered import Gathered
from server.aggregation.lowrank import Matrix
from shared.adapter import AdapterLayout, AdapterUpdate, Array

_SMOOTHING = 1e-6
"""The paper's nu, in units of the typical distance between two sites."""
_LEAST = 1e-30
_ITERATIONS = 1000
_STILL = 1e-12


def geometric_median(layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
    """Return the weighted geometric median of each tower's changes."""
    gathered = Gathered.of(layout, updates)
    combined: dict[str, Array] = {}
    for tower in gathered.towers():
        coefficients = weiszfeld(gathered.square_distances(tower), gathered.shares(tower))
        combined |= gathered.combination(tower, coefficients)
    return combined


def weiszfeld(square_distances: Matrix, shares: Matrix) -> Matrix:
    """Return the geometric median of points as coefficients that sum to one.

    The median is a mixture of the points, ``v = sum c_k x_k``, and
    ``|v - x_j|^2 = (D c)_j - c D c / 2`` for their squared distances D: an iteration costs
    O(k^2), whatever the dimension.

    Args:
        square_distances: D, (k, k).
        shares: The points' weights, (k,), together one.
    """
    typical = float(np.median(np.sqrt(square_distances)))
    smallest = max(_SMOOTHING * typical, _LEAST)
    coefficients = shares
    for _ in range(_ITERATIONS):
        mixed = square_distances @ coefficients
        squares = np.maximum(mixed - coefficients @ mixed / 2, 0.0)
        pull = shares / np.maximum(np.sqrt(squares), smallest)
        following = pull / pull.sum()
        moved = float(np.abs(following - coefficients).max())
        coefficients = following
        if moved < _STILL:
            break
    return coefficients
