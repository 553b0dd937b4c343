"""Mean of sites: random effects with a cautious interval, and where a new site may fall.

Between-site variance after DerSimonian and Laird (1986), interval after Hartung and Knapp
(2001) with the variance correction never below one (Roever, Knapp and Friede, 2015,
https://doi.org/10.1186/s12874-015-0091-1): without that bound three sites that happen to
agree would give an interval of no width. Prediction interval after Higgins, Thompson and
Spiegelhalter (2009), https://doi.org/10.1111/j.1467-985X.2008.00552.x.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.special import stdtrit

from shared.page.numbers import Interval

LEAST_SITES = 3
LEAST_SITES_PREDICTION = 5
_Z = 1.959963984540054


@dataclass(frozen=True)
class Pooled:
    """Random-effects mean over sites.

    Attributes:
        value: The mean.
        low: Lower end of its 95 % interval.
        high: Upper end.
        new: 95 % prediction interval for a new, similar site; ``None`` under 5 sites.
        sites: Number of sites.
        between: Standard deviation between sites.
    """

    value: float
    low: float
    high: float
    new: tuple[float, float] | None
    sites: int
    between: float


def _variances(rows: Sequence[Interval]) -> np.ndarray:
    """Return squared standard errors from the width of the intervals.

    Two models that are one and the same differ by exactly zero with no width; such a site
    gets the median variance of the others, or it would outweigh all of them.
    """
    errors = [(row.high - row.low) / (2 * _Z) for row in rows]
    known = [error for error in errors if error > 0]
    instead = median(known) if known else 1e-9
    return np.array([error if error > 0 else instead for error in errors]) ** 2


def pool(rows: Sequence[Interval]) -> Pooled | None:
    """Return the mean of at least three sites, or ``None``."""
    count = len(rows)
    if count < LEAST_SITES:
        return None
    values, variances = np.array([row.value for row in rows]), _variances(rows)
    weights = 1 / variances
    fixed = float(weights @ values / weights.sum())
    excess = float(weights @ (values - fixed) ** 2) - (count - 1)
    between = max(0.0, excess / float(weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (variances + between)
    mean = float(weights @ values / weights.sum())
    correction = max(1.0, float(weights @ (values - mean) ** 2) / (count - 1))
    error = math.sqrt(correction / float(weights.sum()))
    half = float(stdtrit(count - 1, 0.975)) * error
    new = None
    if count >= LEAST_SITES_PREDICTION:
        reach = float(stdtrit(count - 2, 0.975)) * math.sqrt(between + error**2)
        new = (mean - reach, mean + reach)
    return Pooled(mean, mean - half, mean + half, new, count, math.sqrt(between))
