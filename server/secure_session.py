"""What the sites of a secure round are to agree upon, from what the round asks of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from server.first_plan import FirstPlan
from server.planning import Asking, RoundPlan
from shared.adapter import TOWERS, Tower
from shared.config import JobConfig
from shared.errors import SecureSumError
from shared.parts import part_digests
from shared.secure_round import adapter_digest
from shared.security.secagg.session import LEAST_SITES, Participant, Session, least_threshold
from shared.security.secagg.vector import VectorForm


@dataclass(frozen=True)
class Members:
    """Who may take part in secure sums.

    Attributes:
        consortium: Its number.
        key_of: Returns the public key that a site signs with now; ``None`` for a stranger.
    """

    consortium: str
    key_of: Callable[[str], str | None]


def threshold_of(job: JobConfig, weights: Mapping[str, Mapping[Tower, int]], quorum: int) -> int:
    """Return how many sites of a session must answer every stage.

    Where sites add noise together, so many that in every tower enough are left whose noise it
    needs, and one more, which may be curious.

    Args:
        job: The job.
        weights: Of the sites that are asked, per tower.
        quorum: Least sites in a sum.
    """
    least = max(least_threshold(len(weights)), quorum)
    if not job.privacy.noised_together:
        return least
    towers = {tower for each in weights.values() for tower in each}
    without = max((sum(t not in each for each in weights.values()) for t in towers), default=0)
    return max(least, without + job.privacy.noise_shares + 1)


def session_of(
    plan: RoundPlan, asking: Asking, first: FirstPlan, members: Members, form: VectorForm
) -> Session:
    """Return the session of an attempt at a round.

    Args:
        plan: Whom it asks.
        asking: What it asks them.
        first: What all attempts at the round go by.
        members: Who may take part.
        form: Of the vectors.

    Raises:
        SecureSumError: ``secure-too-few``, ``secure-roster``, ``secure-tower`` or
            ``secure-session``, if there can be none.
    """
    least = max(LEAST_SITES, plan.quorum)
    if len(plan.asked) < least:
        raise SecureSumError(
            "secure-too-few", f"{len(plan.asked)} sites are there, expected at least {least}"
        )
    request = asking.request
    threshold = threshold_of(request.job, {s: plan.weights[s] for s in plan.asked}, plan.quorum)
    if threshold > len(plan.asked):
        raise SecureSumError(
            "secure-too-few",
            f"{len(plan.asked)} sites are there, expected {threshold} whose noise together is "
            "enough in every tower; fewer privacy.noise_shares would do",
        )
    try:
        session = Session(
            consortium=members.consortium,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            base=request.base_sha256,
            job=request.job_sha256,
            adapter=adapter_digest(part_digests(asking.shared)),
            form=form.digest,
            entries=form.entries,
            scale=request.scale,
            clip_norm=request.job.aggregate.clip_norm,
            total_weight=_heaviest(first.weights.values()),
            threshold=threshold,
            participants=tuple(_participant(plan, site, members) for site in sorted(plan.asked)),
        )
    except ValidationError as error:
        raise SecureSumError("secure-session", error.errors()[0]["msg"]) from None
    session.check_towers(plan.asked)
    return session


def _participant(plan: RoundPlan, site: str, members: Members) -> Participant:
    key = members.key_of(site)
    if key is None:
        raise SecureSumError("secure-roster", f"{site}: is not in the consortium's roster")
    return Participant(name=site, key=key, towers=tuple(sorted(plan.weights[site])))


def _heaviest(weights: Collection[Mapping[Tower, int]]) -> int:
    """Return the largest sum of weights of a tower; the round's scale is made for it."""
    sums = [sum(each.get(tower, 0) for each in weights) for tower in TOWERS]
    return max(1, *sums)
