"""Which jobs noise for whole sites does not go with, each with the reason and what to do instead.

What a site sends in a round is cut to one norm, and the coordinator adds noise for that norm to
the sum of all (DP-FedAvg, McMahan et al., 2018, https://arxiv.org/abs/1710.06963, without
sampling). Whatever of a site gets around that sum would leave without noise.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shared.config.job import JobConfig

_ON: Final = "privacy.mode = 'site-level'"
_OF_PATIENTS: Final = ("objective", "group_size", "sampling", "sampling_rate")
_RULES: Final = "use altfold, ffa or fedavg"


def unsound_site_level(job: "JobConfig") -> Iterator[str]:
    """Yield why noise for whole sites would not hold or be felt in a job, with what to do.

    Args:
        job: With ``privacy.mode = 'site-level'``.
    """
    privacy, aggregate = job.privacy, job.aggregate
    for name in _OF_PATIENTS:
        if getattr(privacy, name) != type(privacy).model_fields[name].default:
            yield (
                f"privacy.{name} is about training with noise for patients, and with {_ON} sites "
                "train without; leave it out"
            )
    if aggregate.clip_norm != privacy.clip_norm:
        yield (
            f"aggregate.clip_norm = {aggregate.clip_norm:g} and privacy.clip_norm = "
            f"{privacy.clip_norm:g}: with {_ON} a site's change is cut once, to the norm that the "
            "noise is for; leave aggregate.clip_norm out"
        )
    if aggregate.weighting != "equal":
        yield (
            f"aggregate.weighting = '{aggregate.weighting}': with {_ON} noise hides a site of "
            "weight one, and another weight would change the sum by more; use 'equal', or leave it "
            "out"
        )
    yield from _beside_the_sum(job)
    if aggregate.cohort is not None or aggregate.over_select:
        field = "over_select" if aggregate.cohort is None else "cohort"
        yield (
            f"aggregate.{field}: with {_ON} all sites are asked in every round: a cohort that "
            "everybody can work out hides nobody, so nothing is saved by it; leave it out"
        )


def _beside_the_sum(job: "JobConfig") -> Iterator[str]:
    """Yield what is made of more than the sum that gets the noise."""
    rule, combine = job.aggregate.rule, job.aggregate.combine
    if combine != "mean":
        yield (
            f"aggregate.combine = '{combine}' chooses by every site's own change, and with {_ON} "
            "noise is on their sum only; use 'mean'"
        )
    if job.aggregate.shares_features:
        yield (
            f"aggregate.rule = '{rule}' exchanges features that every site's own model makes, and "
            f"with {_ON} noise is on the sum of changes only; {_RULES}"
        )
    elif job.aggregate.private_factors:
        yield (
            f"aggregate.rule = '{rule}': a site's model is half its own factor, which was trained "
            f"without noise, so that {_ON} would cover no model; {_RULES}"
        )
    elif job.aggregate.needs_every_change:
        yield (
            f"aggregate.rule = '{rule}' multiplies every site's own factors, and with {_ON} noise "
            f"is on the sum of changes only; {_RULES}"
        )
    if job.proxy.named:
        yield (
            "proxy: the server would distil what every single site's adapter makes of the public "
            f"set, and with {_ON} noise is on the sum of changes only; leave [proxy] out"
        )
