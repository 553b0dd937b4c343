"""How much each site counts: small integers per tower, from the counts the sites release.

Integers, so that the weighted sum is exact in fixed point. A site multiplies its change by
its weight itself; the server divides by the sum of the weights that it admitted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.adapter import TOWERS, Tower
from shared.config import AggregateConfig
from shared.fixedpoint import choose_scale

_LARGEST_WEIGHT = 255


@dataclass(frozen=True)
class RoundWeights:
    """Weights of one round.

    Attributes:
        of_site: ``of_site[site][tower]``; a tower without records at the site is absent.
        scale: Fixed-point steps per unit, common to all sites and towers.
    """

    of_site: dict[str, dict[Tower, int]]
    scale: float


def round_weights(
    examples: Mapping[str, Mapping[Tower, int]], config: AggregateConfig
) -> RoundWeights:
    """Return the weights of the sites of one round.

    Args:
        examples: Released training records per tower, by site.
        config: Weighting, cap and clip norm.
    """
    of_site: dict[str, dict[Tower, int]] = {site: {} for site in examples}
    heaviest = 1
    for tower in TOWERS:
        counts = {site: towers.get(tower, 0) for site, towers in examples.items()}
        weights = integer_weights(counts, config.weighting, config.max_weight)
        heaviest = max(heaviest, sum(weights.values()))
        for site, weight in weights.items():
            of_site[site][tower] = weight
    scale = choose_scale(heaviest, config.clip_norm, max(1, len(examples)))
    return RoundWeights(of_site, scale)


def integer_weights(
    counts: Mapping[str, int],
    weighting: Literal["sqrt", "size", "equal"],
    largest_share: float,
) -> dict[str, int]:
    """Return integers from 1 to 255, nearly proportional to the weighting.

    No site gets more than ``largest_share`` of the sum; with too few sites for that, all
    weigh the same. Sites without records are left out.
    """
    raw = {site: _raw(count, weighting) for site, count in sorted(counts.items()) if count > 0}
    if not raw:
        return {}
    share = max(largest_share, 1 / len(raw))
    ceiling = _ceiling(sorted(raw.values()), share)
    capped = {site: min(value, ceiling) for site, value in raw.items()}
    largest = max(capped.values())
    weights = {
        site: max(1, round(_LARGEST_WEIGHT * value / largest)) for site, value in capped.items()
    }
    # Rounding can lift a share over the limit by a hair; equal weights always meet it.
    while max(weights.values()) > share * sum(weights.values()) + 1e-9:
        top = max(weights.values())
        weights = {site: min(weight, top - 1) for site, weight in weights.items()}
    divisor = math.gcd(*weights.values())
    return {site: weight // divisor for site, weight in weights.items()}


def _raw(count: int, weighting: Literal["sqrt", "size", "equal"]) -> float:
    if weighting == "equal":
        return 1.0
    return math.sqrt(count) if weighting == "sqrt" else float(count)


def _ceiling(ascending: list[float], share: float) -> float:
    """Return the largest c with ``c <= share * sum(min(value, c))``, or the largest value."""
    below = 0.0
    for index, value in enumerate(ascending):
        above = len(ascending) - index
        # With c between the last value and this one, the sum is below + above * c.
        if below and share * above < 1:
            ceiling = share * below / (1 - share * above)
            if ceiling < value:
                return ceiling
        below += value
    return ascending[-1]
