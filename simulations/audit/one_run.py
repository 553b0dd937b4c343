"""A lower bound on epsilon from a single run of the mechanism.

Steinke, Nasr and Jagielski, 2023, https://arxiv.org/abs/2305.08846. Many canaries are each put in
or left out by a coin of their own; the auditor guesses, of those he is surest about, which way the
coin fell. If the mechanism is (epsilon, delta)-differentially private, the number of right guesses
is no larger, in distribution, than that of coins which fall right with probability
``e**epsilon / (e**epsilon + 1)``, but for a term in delta. More right guesses than that refute it.

Nothing is assumed of how the scores were made, nor of what else the mechanism was given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CONFIDENCE = 0.999
"""Of a bound unless asked for otherwise: one audit in a thousand may accuse a right mechanism."""

_SHARES = (0.02, 0.1, 0.3, 1.0)
"""Of the canaries are guessed at. Which is best depends on the mechanism; all are tried, and the
confidence pays for each."""
_LARGEST = 50.0
_CLOSE = 1e-4


@dataclass(frozen=True)
class OneRunBound:
    """What a run shows.

    Attributes:
        bound: The mechanism is not (bound, delta)-differentially private, nor better.
        most: The bound if every guess had been right: more cannot be shown with so many canaries.
        delta: Of the bound.
        confidence: Probability that such a bound is not above the true epsilon.
        canaries: How many were put in or left out.
        guesses: How many were guessed at, where the bound is largest.
        right: How many of these were guessed right.
    """

    bound: float
    most: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of so many right guesses under (epsilon, delta)-DP.

    Theorem 5.2 of the paper.

    Args:
        canaries: m, put in or left out by fair and independent coins.
        guesses: r, how many were guessed at; chosen without looking at the coins.
        right: v, how many of them were right.
        epsilon: Of the privacy that is put to the test; at least 0.
        delta: Of the same.
    """
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, chance))
    if delta == 0 or right == 0:
        return min(1.0, beta)
    # P(v > W >= v - i) for i = 1 .. v, each over i.
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    alpha = float(np.max(below / np.arange(1, right + 1)))
    return min(1.0, beta + 2 * alpha * delta * canaries)


def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Return an epsilon that the guesses refute together with every smaller one; 0 if none.

    Args:
        canaries: As in ``p_value``, like the next three.
        guesses: How many were guessed at.
        right: How many of them were right.
        delta: Of the bound.
        confidence: Probability with which the bound holds.
    """
    limit = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) <= limit

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > _CLOSE:
        middle = (low + high) / 2
        if refuted(middle):
            low = middle
        else:
            high = middle
    return low


def bound_of(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    delta: float,
    confidence: float = CONFIDENCE,
) -> OneRunBound:
    """Return what scores show about the mechanism that they come from.

    The highest scores are guessed to be in, as many of the lowest to be out.

    Args:
        scores: (m,) larger where the auditor believes more that a canary was in.
        included: (m,) how the coins fell; independent and fair.
        delta: Of the bound.
        confidence: Of the bound, over everything that is tried.

    Raises:
        ValueError: If there are not as many scores as coins, fewer than two, or a score is not
            a number.
    """
    count = len(scores)
    if scores.shape != included.shape or count < 2 or np.isnan(scores).any():
        raise ValueError(
            f"{scores.shape} scores of {included.shape} canaries; expected as many of each, two or "
            "more, and no not-a-number"
        )
    order = np.argsort(scores, kind="stable")
    halves = sorted({max(1, int(share * count / 2)) for share in _SHARES})
    each = 1.0 - (1.0 - confidence) / len(halves)
    found: list[tuple[float, int, int]] = []
    for half in halves:
        right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        found.append((lower_bound(count, 2 * half, right, delta, each), 2 * half, right))
    bound, guesses, right = max(found)
    return OneRunBound(
        bound, _most(count, halves, delta, each), delta, confidence, count, guesses, right
    )


def _most(count: int, halves: Sequence[int], delta: float, confidence: float) -> float:
    return max(lower_bound(count, 2 * half, 2 * half, delta, confidence) for half in halves)
