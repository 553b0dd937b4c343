"""Balanced accuracy: mean of sensitivity and specificity at a threshold from validation.

The threshold maximises Youden's index (Youden, 1950,
https://doi.org/10.1002/1097-0142(1950)3:1<32::aid-cncr2820030106>3.0.co;2-3) on the validation
split and is then fixed: test labels never move it, and resampling the test split does not either.
"""

import numpy as np
from numpy.typing import NDArray

from shared.metrics.bootstrap import Floats


def choose_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the threshold with the best balanced accuracy; scores at or above it are positive.

    Candidates lie midway between neighbouring distinct scores. Of several equally good ones the
    middle one is taken.

    Args:
        scores: (n,) validation scores.
        positive: (n,) validation labels, with at least one of each kind.

    Raises:
        ValueError: If a kind is missing.
    """
    if positive.all() or not positive.any():
        raise ValueError("choose_threshold needs positives and negatives")
    distinct = np.unique(scores)
    if len(distinct) == 1:
        return float(distinct[0])
    candidates = (distinct[1:] + distinct[:-1]) / 2
    high, low = np.sort(scores[positive]), np.sort(scores[~positive])
    sensitivity = 1 - np.searchsorted(high, candidates) / len(high)
    specificity = np.searchsorted(low, candidates) / len(low)
    balanced = sensitivity + specificity
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    return float(candidates[best[(len(best) - 1) // 2]])


def balanced_accuracy(
    scores: Floats, positive: NDArray[np.bool_], threshold: float, weights: Floats
) -> Floats:
    """Return the balanced accuracy of one finding for every row of weights.

    Args:
        scores: (n,) test scores.
        positive: (n,) test labels.
        threshold: See ``choose_threshold``.
        weights: (b, n) weights of the records.

    Returns:
        (b,) in 0..1, NaN where a row holds no positive or no negative.
    """
    called = scores >= threshold
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = (weights @ (called & positive)) / (weights @ positive)
        specificity = (weights @ (~called & ~positive)) / (weights @ ~positive)
        return np.asarray((sensitivity + specificity) / 2, dtype=np.float64)
