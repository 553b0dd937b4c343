"""Which jobs secure aggregation does not go with, each with the reason and what to do instead."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shared.config.job import JobConfig

LEAST_SITES: Final = 3
"""Of two sites each would learn the other's change from the sum."""

_ON: Final = "privacy.secure_aggregation = true"


def unsound_secure_aggregation(job: "JobConfig") -> Iterator[str]:
    """Yield why a job cannot be carried out on sums alone, with what to do."""
    if not job.privacy.secure_aggregation:
        return
    yield from _needs_single_changes(job)
    yield from _needs_more_sites(job)
    if job.aggregate.over_select:
        yield (
            f"aggregate.over_select: with {_ON} who answers first would decide whose change is in "
            "the sum, and a site unmasks one sum only; leave over_select out"
        )
    if job.simulation.engine == "flower":
        yield (
            f"simulation.engine = 'flower' does not go with {_ON}: a session is in the memory of "
            "one process, and this engine moves sites between processes; use 'local'"
        )


def _needs_single_changes(job: "JobConfig") -> Iterator[str]:
    rule, combine = job.aggregate.rule, job.aggregate.combine
    if combine != "mean":
        yield (
            f"aggregate.combine = '{combine}' must see every site's change, and with {_ON} the "
            "server sees their sum only; use 'mean', or turn secure aggregation off"
        )
    if job.aggregate.shares_features:
        yield (
            f"aggregate.rule = '{rule}' weighs every site's features by what they tell, and with "
            f"{_ON} the server sees sums only; use altfold, ffa, fedavg or fedsa"
        )
    elif job.aggregate.needs_every_change:
        yield (
            f"aggregate.rule = '{rule}' multiplies every site's factors, and with {_ON} the server "
            "sees their sums only; use altfold, ffa, fedavg or fedsa"
        )
    if job.distils:
        yield (
            "proxy: the server distils what every single site's adapter makes of the public set, "
            f"and with {_ON} it has no single adapter; leave [proxy] out"
        )
    if job.attack.sites:
        yield (
            f"attack.sites change what a site sends, and with {_ON} that is masked; leave [attack] "
            "out"
        )


def _needs_more_sites(job: "JobConfig") -> Iterator[str]:
    numbers = (
        ("data.sites", len(job.data.sites) or None),
        ("data.phantom_sites", job.data.phantom_sites),
        ("partition.sites", job.partition.sites),
        ("aggregate.cohort", job.aggregate.cohort),
    )
    for field, number in numbers:
        if number is not None and number < LEAST_SITES:
            yield (
                f"{field}: {number} with {_ON}: of two sites each learns the other's change from "
                f"the sum; expected at least {LEAST_SITES}"
            )
