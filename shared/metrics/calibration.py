"""May a score be read as a probability? Expected calibration error and its bins.

Probability of a finding: ``sigmoid(scale * e . (pos - neg) + logit(prevalence))``, with e the
image's unit embedding, pos and neg the mean embeddings of the finding's prompts, scale the
base's logit scale and prevalence the finding's share of the site's labelled *training* records,
kept within 0.01..0.99. It is the probability that the prompt objective trains; nothing is fitted
afterwards, so a model that only ranks well shows a large error here.

ECE: Naeini et al. (2015), https://doi.org/10.1609/aaai.v29i1.9602, with ten bins of equal width,
over all pairs of record and finding. Pairs of one record are not independent, so the Wilson
intervals of the bins (Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953) are a little
too narrow; the interval of the ECE itself is by patient and is not.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from shared.metrics.bootstrap import COVERAGE, Floats
from shared.results import CalibrationBin

BINS = 10
PREVALENCE_RANGE = (0.01, 0.99)


def prevalence_logit(labels: NDArray[np.floating]) -> Floats:
    """Return the log odds of every finding among labelled training records.

    Args:
        labels: (n, findings) 0 or 1, n >= 1.
    """
    return np.asarray(logit(np.clip(labels.mean(0, dtype=np.float64), *PREVALENCE_RANGE)))


def probability(margins: Floats, scale: float, bias: Floats) -> Floats:
    """Return probabilities of findings.

    Args:
        margins: (n, findings) e . (pos - neg).
        scale: The base's logit scale.
        bias: (findings,) see ``prevalence_logit``.
    """
    return np.asarray(expit(scale * margins + bias), dtype=np.float64)


def bin_of(probabilities: Floats) -> NDArray[np.intp]:
    """Return the bin 0..9 of every probability; 1.0 falls into the last."""
    return np.minimum((probabilities * BINS).astype(np.intp), BINS - 1)


def calibration_error(probabilities: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the ECE for every row of weights.

    Args:
        probabilities: (n, findings).
        labels: (n, findings).
        weights: (b, n) weights of the records.

    Returns:
        (b,) in 0..1, NaN where a row is empty.
    """
    bins = bin_of(probabilities)
    gap = np.stack([((probabilities - labels) * (bins == b)).sum(1) for b in range(BINS)], axis=1)
    # sum over bins of (n_b / n) |mean p - mean y| = sum over bins |sum (p - y)| / n
    total = weights.sum(1) * probabilities.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(weights @ gap).sum(1) / total, dtype=np.float64)


def calibration_bins(probabilities: Floats, labels: NDArray[np.bool_]) -> list[CalibrationBin]:
    """Return the bins that hold a pair, from low to high, with Wilson intervals.

    Args:
        probabilities: (n, findings).
        labels: (n, findings).
    """
    bins = bin_of(probabilities)
    result = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        if not count:
            continue
        low, high = wilson(int(labels[inside].sum()), count)
        result.append(
            CalibrationBin(
                predicted=float(probabilities[inside].mean()),
                observed=float(labels[inside].mean()),
                low=low,
                high=high,
                n=count,
            )
        )
    return result


def wilson(positives: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    z = float(ndtri(0.5 + COVERAGE / 2))
    share, spread = positives / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
