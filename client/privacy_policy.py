"""What a site spends on its patients' privacy at most: its own decision, in ``policy.toml``.

```toml
[privacy]
population = "chest-2026"   # the patients, under this name in the ledger for good
epsilon = 8.0               # over everything that is ever released about them
delta = 1e-6
```

A job may ask for more privacy than that, never for less.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import RefusedError
from shared.privacy.objections import PrivacyPlan, objections

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PrivacyPolicy(BaseModel):
    """``[privacy]`` of a policy: limits of one patient population.

    Attributes:
        population: The patients' name in the ledger; whatever is released about them, from
            whichever data set and in whichever study, is counted under it.
        epsilon: The most that may ever be spent.
        delta: Probability with which the bound may fail; below one in the number of patients.
        least_noise: Smallest noise multiplier of a step.
        largest_clip: Largest L2 norm that one patient's gradient is cut to.
        noise_shares: The most sites that the noise of a sum may be split among. With more than 1
            its patients' privacy depends on secure aggregation, and on so many honest sites.
        curious_sites: Where it is split: so many of the others in a sum may work against this
            site, with the coordinator, and take their noise away.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][\w.-]*$")]
    epsilon: Positive
    delta: Annotated[float, Field(ge=1e-12, lt=1)]
    least_noise: Annotated[float, Field(ge=0.3, allow_inf_nan=False)] = 0.5
    largest_clip: Positive = 1.0
    noise_shares: Annotated[int, Field(ge=1)] = 1
    curious_sites: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class Asked:
    """What a job asks for; ``None`` leaves it to the site.

    Attributes:
        epsilon: For the whole run.
        delta: Of the run.
        clip: L2 norm that each patient is cut to.
        noise: Noise multiplier of a step.
    """

    epsilon: float | None = None
    delta: float | None = None
    clip: float | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Terms:
    """What holds for a run: the stricter of policy and job, number by number.

    Attributes:
        epsilon: Of the population, over everything.
        run_epsilon: Of the run alone.
        delta: Of both.
        clip: L2 norm that each patient is cut to.
        noise: The least noise multiplier.
    """

    epsilon: float
    run_epsilon: float
    delta: float
    clip: float
    noise: float


def terms(policy: PrivacyPolicy, asked: Asked) -> Terms:
    """Return what holds when a job asks a site: always at least the site's own privacy."""
    return Terms(
        epsilon=policy.epsilon,
        run_epsilon=_least(policy.epsilon, asked.epsilon),
        delta=_least(policy.delta, asked.delta),
        clip=_least(policy.largest_clip, asked.clip),
        noise=max(policy.least_noise, asked.noise or 0.0),
    )


def check_plan(plan: PrivacyPlan) -> None:
    """Raise unless privacy may be claimed for a plan.

    Raises:
        RefusedError: ``privacy-plan`` with every objection, for the site's operator.
    """
    found = objections(plan)
    if found:
        raise RefusedError("privacy-plan", "; ".join(objection.why for objection in found))


def _least(limit: float, asked: float | None) -> float:
    return limit if asked is None else min(limit, asked)
