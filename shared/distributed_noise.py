"""Noise that the sites of a secure sum add together: what a job asks for, as all of them know it.

Every round is one step. Each site clips its patients' gradients, adds them up, adds its share of
the noise and puts whole numbers into the sum; of the step nothing but the sum is known to anybody.
The shares of ``privacy.noise_shares`` sites are as much noise as one site would have to add to
its own sum, so the sum is accounted as one step over the patients of all sites. Whoever else is in
the sum may be curious, and take its own share away.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from shared.adapter import AdapterLayout, Factor
from shared.config import JobConfig
from shared.privacy.accountant import Spend, noise_for
from shared.privacy.mechanism import IN_SINGLE_PRECISION, Grid, distributed_grid, grid_of_scale
from shared.privacy.objections import GROUP_SENSITIVITY

_SLACK: Final = 1 - 2.0**-8
"""Of the scale: every site works the noise out anew, to a third of a percent on whatever machine,
and must not find that the next power of two is needed for it."""


def noise_of(job: JobConfig, layout: AdapterLayout) -> float:
    """Return the noise multiplier of a sum: as asked, or as the run's epsilon needs it.

    Raises:
        ValueError: If no noise keeps to the epsilon.
    """
    asked = job.privacy
    if asked.noise_multiplier is not None:
        return asked.noise_multiplier
    if asked.epsilon is None:
        raise ValueError("neither epsilon nor noise_multiplier; expected one of them")
    # Every share is drawn to a relative error of its own.
    entries = layout.entries(("A", "B")) * asked.noise_shares
    return calibrated(asked.epsilon, asked.delta, asked.sampling_rate, job.rounds, entries)


@lru_cache(maxsize=64)
def calibrated(epsilon: float, delta: float, rate: float, steps: int, entries: int) -> float:
    """Return the least noise multiplier that keeps a run to an epsilon; see ``noise_for``."""
    plan = Spend(sampling=rate, noise=1.0, steps=steps, entries=entries)
    return noise_for(epsilon, delta, plan)


def scale_of(
    job: JobConfig, layout: AdapterLayout, factors: Iterable[Factor], parties: int
) -> float:
    """Return the steps per unit of a round's sum, common to all sites.

    Args:
        job: With distributed noise.
        layout: Of the run.
        factors: Which the sites have gradients of.
        parties: Sites that are asked.

    Raises:
        ValueError: If the noise does not fit into sums of 32 bits, or no noise is enough.
    """
    shares = job.privacy.noise_shares
    if parties < shares:
        raise ValueError(
            f"{parties} sites are there, and privacy.noise_shares = {shares} of them are to add "
            "the noise; expected more sites, or fewer shares"
        )
    grid = distributed_grid(
        layout.entries(factors),
        _sensitivity(job),
        noise_of(job, layout),
        parties=parties,
        missing=parties - shares,
    )
    return grid.per_unit * _SLACK


def grid_at(
    scale: float,
    job: JobConfig,
    layout: AdapterLayout,
    factors: Iterable[Factor],
    parties: int,
) -> Grid:
    """Return the grid of a site's own share, for a scale that a coordinator says.

    There is at least as much noise on it as the job asks for, whatever the scale is.

    Args:
        scale: Steps per unit.
        job: With distributed noise.
        layout: Of the site's own encoder.
        factors: Which the sites have gradients of.
        parties: Sites of the session.

    Raises:
        ValueError: If so much noise does not fit at this scale.
    """
    return grid_of_scale(
        scale,
        layout.entries(factors),
        _sensitivity(job),
        noise_of(job, layout),
        parties=parties,
        shares=job.privacy.noise_shares,
    )


def _sensitivity(job: JobConfig) -> float:
    """Return the largest L2 norm by which one patient changes a sum."""
    grouped = job.privacy.objective == "grouped"
    times = GROUP_SENSITIVITY if grouped else 1.0
    return times * job.privacy.clip_norm * IN_SINGLE_PRECISION
