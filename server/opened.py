"""A round that is under way: what it asks, what came, and its record once it is over."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from server.planning import Asking, RoundPlan
from server.questions import AWAY, Answer, Question
from server.records import ABORTED, Contribution, RoundRecord
from server.roster import KnownSite, Roster
from shared.adapter import SharedAdapter
from shared.results import ProxyStep


@dataclass
class OpenRound:
    """One attempt at a round.

    Attributes:
        plan: Whom it asks.
        attempt: Counts repeats after a resume.
        asking: Makes its questions.
        started: When it began, by the engine's clock.
        resumed: Whether the run was resumed just before it.
        contributions: One per known site, as far as it is known what became of it.
        means: What a sum over the sites tells of them, in secure aggregation; and what noise was
            added to it.
    """

    plan: RoundPlan
    attempt: int
    asking: Asking
    started: float
    resumed: bool
    contributions: list[Contribution] = field(default_factory=list)
    means: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.contributions.extend(self.plan.absent)

    @property
    def factors(self) -> str:
        """Return the trained factors, such as ``B`` or ``AB``."""
        return "".join(self.asking.request.factors)

    @property
    def contributors(self) -> list[str]:
        """Return the sites whose change was admitted, sorted."""
        return sorted(each.site for each in self.contributions if each.state == "in")

    def questions(self, roster: Roster) -> list[Question]:
        """Return the question to every site of the cohort."""
        weights = self.plan.weights
        expected = self.plan.forecasts
        return [
            replace(self.asking.question(roster.sites[n], weights[n]), forecast=expected.get(n))
            for n in self.plan.asked
        ]

    def add(self, answer: Answer, site: KnownSite) -> None:
        """Note what became of the question to one site."""
        self.contributions.append(_contribution(answer, site))

    def shortage(self) -> str | None:
        """Return what is missing for the round to count, or ``None``."""
        admitted = len(self.contributors)
        if admitted >= self.plan.quorum:
            return None
        why = "; ".join(_reasons(self.contributions)) or "no other site is connected"
        if not self.plan.asked:
            return f"round {self.plan.round}: there is no site to ask ({why})"
        return (
            f"round {self.plan.round}: {admitted} of {len(self.plan.asked)} sites asked "
            f"contributed, expected at least {self.plan.quorum} ({why})"
        )

    def may_come(self) -> bool:
        """Return whether the round lacks only sites that are away, and may come back."""
        away = [e for e in self.contributions if e.state == "missing" and e.reason in AWAY]
        ready = [e for e in self.contributions if e.reason == ABORTED]
        there = len(self.contributors) + len(ready)
        return bool(away) and there + len(away) >= self.plan.quorum

    def facts(self) -> dict[str, Any]:
        """Return what the checkpoint's manifest says of the round."""
        return {
            "attempt": self.attempt,
            "factors": self.factors,
            "contributors": self.contributors,
            "job_sha256": self.asking.request.job_sha256,
            "base_sha256": self.asking.request.base_sha256,
        }

    def record(
        self,
        applied: SharedAdapter,
        seconds: float,
        relative_error: float | None,
        manifest_sha256: str,
        proxy: ProxyStep | None = None,
    ) -> RoundRecord:
        """Return the round's record; the round is over."""
        return RoundRecord(
            round=self.plan.round,
            attempt=self.attempt,
            factors=self.factors,
            seconds=seconds,
            asked=len(self.plan.asked),
            contributors=len(self.contributors),
            relative_error=relative_error,
            adapter_sha256=applied.sha256(),
            manifest_sha256=manifest_sha256,
            contributions=sorted(self.contributions, key=lambda each: each.site),
            resumed=self.resumed,
            proxy=proxy,
            means=dict(self.means),
        )


def _reasons(contributions: list[Contribution]) -> Iterator[str]:
    for each in contributions:
        if each.lost:
            yield f"{each.site}: {each.reason or each.state}"


def _contribution(answer: Answer, site: KnownSite) -> Contribution:
    """Return what is recorded of an answer in a round of training."""
    reply = answer.reply
    summary = reply.summary if reply and answer.state == "in" else None
    return Contribution(
        site=site.name,
        state=answer.state,
        reason=answer.reason,
        kind=site.kind,
        examples=dict(site.examples),
        seconds=answer.seconds,
        work_seconds=reply.seconds if reply else 0.0,
        transfer_seconds=answer.transfer_seconds,
        bytes_up=answer.bytes_up,
        bytes_down=answer.bytes_down,
        loss=summary.loss if summary else None,
        validation_loss=summary.validation_loss if summary else None,
        clipped=summary.clipped if summary else False,
        gradient_norms=dict(summary.gradient_norms) if summary else {},
        discrepancy=dict(summary.discrepancy) if summary else {},
        peak_memory_bytes=reply.peak_memory_bytes if reply else 0,
        anchor=reply.anchor if reply else None,
    )
