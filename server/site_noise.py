"""Noise for whole sites: the coordinator adds it to the sum of a round's changes.

DP-FedAvg (McMahan et al., 2018, https://arxiv.org/abs/1710.06963), all sites in every round. Every
site's change is cut to one norm C and weighs one. Noise with a standard deviation of z C is added
to each number of their sum, which is divided by the number of sites that were asked, whoever
answered: a site that drops out counts as one that changes nothing. Nothing but that mean goes on
to a rule, and so to the adapter, so everything that is made of it costs no more.

The sum is of whole numbers, and so is the noise, on a grid of its own (``shared.privacy``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from server.aggregation.linear import check_alike
from server.planning import RoundPlan
from server.records import RoundRecord
from shared.adapter import TOWERS, AdapterLayout, AdapterUpdate, Factor, Tower
from shared.config import JobConfig
from shared.config.privacy import plan_of
from shared.errors import ConfigError
from shared.fixedpoint import choose_scale
from shared.privacy.accountant import (
    SiteLevelPrice,
    Spend,
    accountant_version,
    epsilon,
    noise_for,
)
from shared.privacy.mechanism import local_grid, noised
from shared.privacy.noise import Draw, operating_system
from shared.privacy.objections import objections
from shared.privacy.statement import (
    NOT_COVERED_OF_SITES,
    Claim,
    Statement,
    claimed,
    sampling_words,
    trust_of,
    unclaimed,
)

_GATE: Final = 1 + 1e-6
"""A change longer than C by so much still passes the gate (``server.validation``)."""
_NOISE, _SITES, _NUMBERS = "noise", "noise_sites", "noise_numbers"
"""What a round's record keeps of its noise: the multiplier, the fewest sites in a mean, and how
many numbers got some."""


@dataclass(frozen=True)
class SiteNoise:
    """The noise of a run.

    Attributes:
        multiplier: z, the standard deviation of the noise on the sum over C.
        clip: C, the L2 norm that a site's change of a round is cut to.
    """

    multiplier: float
    clip: float

    @classmethod
    def of(cls, job: JobConfig, layout: AdapterLayout) -> Self:
        """Return the noise that a job asks for, or as much as its epsilon needs.

        Args:
            job: With ``privacy.mode = 'site-level'``.
            layout: Which layers carry an adapter.

        Raises:
            ConfigError: If no noise keeps to the epsilon, or no epsilon holds with the noise.
        """
        asked, numbers = job.privacy, layout.entries(("A", "B"))
        if asked.noise_multiplier is None:
            plan = Spend(sampling=1, noise=1.0, steps=job.rounds, entries=numbers)
            try:
                multiplier = noise_for(asked.epsilon or 0.0, asked.delta, plan)
            except ValueError as error:
                raise ConfigError(
                    f"privacy.epsilon = {asked.epsilon or 0.0:g}: {error}; give a larger one, or "
                    "fewer rounds"
                ) from None
        else:
            multiplier = asked.noise_multiplier
            spend = Spend(sampling=1, noise=multiplier, steps=job.rounds, entries=numbers)
            if math.isinf(epsilon([spend], asked.delta)):
                raise ConfigError(
                    f"privacy.noise_multiplier = {multiplier:g}: so little noise that no finite "
                    f"epsilon holds over {job.rounds} rounds; give more, or privacy.epsilon"
                )
        try:
            local_grid(numbers, asked.clip_norm, multiplier)
        except ValueError as error:
            raise ConfigError(f"privacy: {error}; allow a larger epsilon") from None
        return cls(multiplier, asked.clip_norm)

    def on(
        self,
        plan: RoundPlan,
        layout: AdapterLayout,
        factors: Sequence[Factor],
        updates: Iterable[AdapterUpdate],
        draw: Draw = operating_system,
    ) -> AdapterUpdate:
        """Return the noised sum of a round's changes, as the one update that the round has.

        Args:
            plan: Whom the round asked; each of them weighs one.
            layout: Which layers carry an adapter.
            factors: Which of them the round trains.
            updates: Of the sites that answered, or their sum.
            draw: Where random bytes come from; of any other source than the operating system
                nothing may be claimed.

        Returns:
            Its weights are the numbers of sites asked, so that a weighted mean divides by them.

        Raises:
            ValueError: If a site weighs more than the noise is for.
        """
        weights = sites_asked(plan)
        names = [name for name in layout.names(factors) if layout.towers[name] in weights]
        total = _sum(layout, names, updates, plan.scale)
        # Every site rounds each of its numbers by half a step at most.
        rounding = math.sqrt(total.size) / (2 * plan.scale)
        grid = local_grid(total.size, self.clip * _GATE + rounding, self.multiplier)
        values = noised(total, grid, draw)
        # In as many steps of fixed point as it fits into, finer than single precision.
        scale = choose_scale(1, float(np.abs(values).max(initial=self.clip)), 1)
        steps = np.rint(values * scale).astype(np.int32).view(np.uint32)
        ends = np.cumsum([math.prod(layout.shapes[name]) for name in names])
        delta = {
            name: part.reshape(layout.shapes[name])
            for name, part in zip(names, np.split(steps, ends[:-1]), strict=True)
        }
        return AdapterUpdate(site="", weights=weights, delta=delta, scale=scale, metrics={})

    def record(
        self, plan: RoundPlan, layout: AdapterLayout, factors: Sequence[Factor]
    ) -> dict[str, float]:
        """Return what a round's record keeps of its noise; ``site_statement`` reads it."""
        weights = sites_asked(plan)
        return {
            _NOISE: self.multiplier,
            _SITES: float(min(weights.values(), default=0)),
            _NUMBERS: float(layout.entries(factors, tuple(weights))),
        }


def check_sites(job: JobConfig, sites: int) -> None:
    """Raise unless a job's promise makes sense for so many sites.

    Raises:
        ConfigError: With the reason, such as a delta that is not below one in their number.
    """
    for objection in objections(replace(plan_of(job), patients=sites)):
        raise ConfigError(f"privacy: with {sites} sites: {objection.why}")


def sites_asked(plan: RoundPlan) -> dict[Tower, int]:
    """Return how many of the sites that a round asks train each tower.

    Raises:
        ValueError: If one of them does not weigh one.
    """
    given = [plan.weights[site] for site in plan.asked]
    if any(weight != 1 for weights in given for weight in weights.values()):
        raise ValueError("a site weighs more than one, and the noise is for one")
    numbers = {tower: sum(tower in weights for weights in given) for tower in TOWERS}
    return {tower: number for tower, number in numbers.items() if number}


def in_words(price: SiteLevelPrice) -> str:
    """Return a price without the epsilon: what the noise does to a step."""
    return (
        f"noise of {price.deviation:.3g} of the clipping norm on each number of the mean; in all "
        f"{price.noise_to_signal:.3g} times as long as the longest step that all sites could agree "
        "on"
    )


def site_statement(job: JobConfig, records: Sequence[RoundRecord]) -> Statement | None:
    """Return what the coordinator may say of the rounds that count; ``None`` if it adds no noise.

    Only those were given to anybody. A sum that was noised for a round that then did not count
    never left the coordinator.

    Args:
        job: What is carried out.
        records: All committed rounds.
    """
    if not job.privacy.for_sites:
        return None
    told = [record.means for record in records]
    if not told:
        return unclaimed("no round was committed, so nothing was released")
    if not all(_NOISE in means for means in told):
        return unclaimed("the history does not say of every round that there was noise on it")
    spends = [
        Spend(sampling=1, noise=means[_NOISE], steps=1, entries=int(means[_NUMBERS]))
        for means in told
    ]
    worst = max(told, key=lambda means: _price(means).noise_to_signal)
    config = job.privacy
    claim = Claim(
        mode="site-level",
        mechanism=(
            "every site's whole change of a round clipped, Gaussian noise in whole steps added by "
            "the coordinator to their sum, once a round, divided by the number of sites asked; "
            + in_words(_price(worst))
        ),
        unit="site",
        adjacency="zero-out",
        epsilon=epsilon(spends, config.delta),
        delta=config.delta,
        units=int(min(means[_SITES] for means in told)),
        clip=config.clip_norm,
        noise=tuple(sorted({spend.noise for spend in spends})),
        sampling=sampling_words(1),
        steps=len(spends),
        composed=f"{len(spends)} {'round' if len(spends) == 1 else 'rounds'} of 1 run",
        trust=trust_of("site-level", sums_only=config.secure_aggregation),
        not_covered=NOT_COVERED_OF_SITES,
        accountant=accountant_version(),
    )
    return claimed(claim)


def _price(means: Mapping[str, float]) -> SiteLevelPrice:
    """Return what a round's noise cost; its epsilon is not looked at."""
    deviation = means[_NOISE] / max(1.0, means[_SITES])
    return SiteLevelPrice(math.inf, deviation, deviation * math.sqrt(means[_NUMBERS]))


def _sum(
    layout: AdapterLayout, names: Sequence[str], updates: Iterable[AdapterUpdate], scale: float
) -> NDArray[np.float64]:
    """Return the sum of all changes, (n,), in the order of ``names``; it must not leave."""
    total = {name: np.zeros(layout.shapes[name], np.uint32) for name in names}
    for update in updates:
        check_alike(layout, update, scale)
        for name, steps in update.delta.items():
            total[name] += steps  # modulo 2**32, which the whole sum fits into
    steps = np.concatenate([total[name].ravel() for name in names])
    return steps.view(np.int32).astype(np.float64) / scale
