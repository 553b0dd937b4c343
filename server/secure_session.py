"""What the sites of a secure round are to agree upon, from what the round asks of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from server.first_plan import FirstPlan
from server.planning import Asking, RoundPlan
from shared.adapter import TOWERS, Tower
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
            threshold=max(least_threshold(len(plan.asked)), plan.quorum),
            participants=tuple(_participant(plan, site, members) for site in sorted(plan.asked)),
        )
    except ValidationError as error:
        raise SecureSumError("secure-session", error.errors()[0]["msg"]) from None
    for site in plan.asked:
        session.check_towers(site, plan.asked)
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
