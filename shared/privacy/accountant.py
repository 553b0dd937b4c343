"""How much privacy was spent: an upper bound on epsilon, over everything that was released.

Privacy loss distributions (Koskela et al., 2020, https://arxiv.org/abs/1906.03049; Doroshenko et
al., 2022, https://arxiv.org/abs/2207.04380) by dp-accounting, which rounds every loss up. It is
tighter than Renyi accounting by a tenth, and unlike numerical approximations never too small.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, Any, Final

from dp_accounting.pld import privacy_loss_distribution
from pydantic import BaseModel, ConfigDict, Field

from shared.privacy.noise import RELATIVE_ERROR

ACCOUNTANT: Final = "privacy loss distributions, rounded up (dp-accounting)"

_FINE: Final = 1e-4
_COARSE: Final = 1e-3
"""Steps of privacy loss; a coarse one is faster and gives a larger epsilon."""
_MOST_STEPS_OF_LOSS: Final = 3e6
_MOST_NOISE: Final = 1e4
_LEAST_NOISE: Final = 0.1
"""With less than a tenth of what one unit can change there is no privacy worth a number."""
_CLOSE: Final = 1.001
_ORDER: Final = 1e-6
"""Added to epsilon: compositions in another order differ in digits beyond the eighth."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Spend(BaseModel):
    """Steps of one mechanism: the Poisson-sampled Gaussian, with one unit more or less.

    Attributes:
        sampling: Probability with which a unit takes part in a step; 1 without sampling.
        noise: Standard deviation of the noise, relative to what one unit can change.
        steps: How many were taken.
        entries: Numbers that got noise in each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampling: Annotated[float, Field(gt=0, le=1)]
    noise: Positive
    steps: Annotated[int, Field(ge=0)]
    entries: Annotated[int, Field(ge=1)] = 1


def accountant_version() -> str:
    """Return the name and version of the accountant, for statements."""
    return f"{ACCOUNTANT} {version('dp-accounting')}"


def epsilon(spends: Iterable[Spend], delta: float, budget: float = 0.0) -> float:
    """Return an epsilon that all spends together keep to.

    Args:
        spends: Everything released about the same units, in any order.
        delta: Probability with which the bound may fail.
        budget: Where a rougher bound, which is larger and ten times as fast, is within it, that
            one is enough.

    Returns:
        Epsilon; 0 for nothing released, and infinity for so little noise that a number would
        only mislead.

    Raises:
        ValueError: If delta is not between 0 and 1.
    """
    taken = [spend for spend in spends if spend.steps]
    rough = _epsilon(taken, delta, _COARSE) if budget > 0 else math.inf
    return rough if rough <= budget else _epsilon(taken, delta, _FINE)


def noise_for(
    budget: float,
    delta: float,
    plan: Spend,
    before: Sequence[Spend] = (),
) -> float:
    """Return the least noise multiplier, to a third of a percent, that keeps to a budget.

    Args:
        budget: Epsilon that must not be passed.
        delta: Probability with which the bound may fail.
        plan: Sampling, steps and entries; its noise is not looked at.
        before: What was spent on the same units already.

    Raises:
        ValueError: If no noise keeps to the budget, such as when it is spent.
    """

    def within(noise: float, loss_step: float) -> bool:
        planned = plan.model_copy(update={"noise": noise})
        return _epsilon([*before, planned], delta, loss_step) <= budget

    if not within(_MOST_NOISE, _FINE):
        raise ValueError(
            f"no noise keeps epsilon within {budget:g} at delta {delta:g}: it is spent, or too "
            "small to be kept at all"
        )
    enough = _bisect(lambda noise: within(noise, _COARSE), _LEAST_NOISE, _MOST_NOISE)
    if not within(enough, _FINE):  # then not even the most noise is within, rounded up coarsely
        enough = _MOST_NOISE
    if not within(enough / _CLOSE**3, _FINE):
        return enough
    return _bisect(lambda noise: within(noise, _FINE), _LEAST_NOISE, enough)


@dataclass(frozen=True)
class SiteLevelPrice:
    """What hiding whole sites costs when a trusted server adds the noise to their mean change.

    Attributes:
        epsilon: Over all rounds, for one site more or less.
        deviation: Standard deviation of the noise on each number of the mean, relative to the
            clipping norm of a whole change.
        noise_to_signal: L2 norm of the noise over the largest possible norm of the mean change;
            above 1 the noise outweighs the longest step that all sites could agree on.
    """

    epsilon: float
    deviation: float
    noise_to_signal: float


def site_level_price(
    sites: int, noise: float, rounds: int, delta: float, entries: int
) -> SiteLevelPrice:
    """Return what noise on the mean of sites' changes promises and costs.

    All sites take part in every round, so that there is no sampling to gain from.

    Args:
        sites: Sites in the mean.
        noise: Noise multiplier, relative to one site's clipping norm.
        rounds: How many.
        delta: Probability with which the bound may fail.
        entries: Numbers in a change.
    """
    spend = Spend(sampling=1, noise=noise, steps=rounds, entries=entries)
    deviation = noise / sites
    return SiteLevelPrice(epsilon([spend], delta), deviation, deviation * math.sqrt(entries))


def _epsilon(spends: Sequence[Spend], delta: float, loss_step: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta}; expected more than 0 and less than 1")
    if not spends:
        return 0.0
    if min(spend.noise for spend in spends) < _LEAST_NOISE:
        return math.inf
    # Noise in whole steps is drawn to a relative error, which moves epsilon and delta so much.
    imprecision = RELATIVE_ERROR * math.fsum(spend.steps * spend.entries for spend in spends)
    coarse = _loss_step(spends, loss_step)
    if coarse is None or imprecision > 1:
        return math.inf
    steps: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        steps[spend.sampling, spend.noise] += spend.steps
    parts = tuple((sampling, noise, count) for (sampling, noise), count in sorted(steps.items()))
    return _composed(parts, delta * math.exp(-imprecision), coarse) * (1 + _ORDER) + 2 * imprecision


@lru_cache(maxsize=256)
def _composed(parts: tuple[tuple[float, float, int], ...], delta: float, loss_step: float) -> float:
    first, *others = parts
    losses = _losses(*first, loss_step)
    for part in others:
        losses = losses.compose(_losses(*part, loss_step))
    return float(losses.get_epsilon_for_delta(delta))


def _loss_step(spends: Sequence[Spend], finest: float) -> float | None:
    """Return the step of loss with which the distribution fits into memory, if any does.

    Steps are ten times as long each time, so that a coarser grid is part of the finer one and
    rounding up to it can only make epsilon larger.
    """
    mean = math.fsum(s.sampling * s.steps / s.noise**2 for s in spends)
    widest = mean / 2 + 20 * math.sqrt(mean) + 1
    for step in (finest, 10 * finest, 100 * finest):
        if widest / step <= _MOST_STEPS_OF_LOSS:
            return step
    return None


@lru_cache(maxsize=64)
def _losses(sampling: float, noise: float, steps: int, loss_step: float) -> Any:  # noqa: ANN401
    """Return the distribution of the privacy loss of some steps (dp-accounting has no types)."""
    if sampling == 1:  # Gaussians add up to one
        return privacy_loss_distribution.from_gaussian_mechanism(
            standard_deviation=noise / math.sqrt(steps), value_discretization_interval=loss_step
        )
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise, sampling_prob=sampling, value_discretization_interval=loss_step
    ).self_compose(steps)


def _bisect(enough: Callable[[float], bool], low: float, high: float) -> float:
    """Return the end of a last, narrow bracket at which ``enough`` holds; it holds at ``high``."""
    while high / low > _CLOSE:
        middle = math.sqrt(low * high)
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
