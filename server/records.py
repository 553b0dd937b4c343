"""What is known of a round once it is over; the history stores it, the outcome is built of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from shared.adapter import Tower
from shared.messages import Anchor
from shared.results import Kind, ParticipationCell, ParticipationState, ProxyStep

RunStatus = Literal["running", "finished", "finished-incomplete", "stopped", "failed"]


@dataclass(frozen=True)
class Contribution:
    """What became of one site in one round.

    Attributes:
        site: Its name.
        state: ``in`` if its change was admitted.
        reason: Code, if it was not.
        kind: What the site's records are, as far as it said so.
        examples: Released training records per tower.
        seconds: From the question to the answer.
        work_seconds: Of the work itself, as the site says.
        transfer_seconds: That the server spent handing over and taking in its messages.
        bytes_up: From the site.
        bytes_down: To the site.
        loss: Mean training loss, nats.
        validation_loss: Of the adapter that the site received, nats.
        clipped: Whether its change was scaled down.
        gradient_norms: Mean gradient norm per tower.
        discrepancy: Per tower, how far it ran ahead; empty unless the site trained both.
        peak_memory_bytes: Of the site's process.
        anchor: The last line of the site's audit log when it answered.
    """

    site: str
    state: ParticipationState
    reason: str | None = None
    kind: Kind | None = None
    examples: Mapping[Tower, int] = field(default_factory=dict)
    seconds: float | None = None
    work_seconds: float = 0.0
    transfer_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    clipped: bool = False
    gradient_norms: Mapping[Tower, float] = field(default_factory=dict)
    discrepancy: Mapping[Tower, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    anchor: Anchor | None = None

    def cell(self) -> ParticipationCell:
        """Return the cell of the results' participation table."""
        return ParticipationCell(
            state=self.state,
            reason=self.reason,
            done=_DONE.get(self.state) if self.reason != SURPLUS else None,
            seconds=self.seconds,
        )

    @property
    def lost(self) -> bool:
        """Return whether the run had to do without what it asked the site for."""
        return self.state in ("missing", "refused")


ABORTED = "secure-aborted"
"""Reason of a site that did all it was asked in a session of secure aggregation that came to
nothing; it is not lost."""
SPOILED = "secure-spoiled"
"""Reason of the sites whose sum cannot be one of honest sites."""
SURPLUS = "enough-answered"
"""Reason of a site that was asked beyond the cohort and was not needed; it is not lost."""

_DONE: Mapping[ParticipationState, str] = {
    "late": "waited for; its contribution was used",
    "missing": "the round went on without it; it is asked again in the next one",
    "refused": "its answer was left out of the round",
}


@dataclass(frozen=True)
class RoundRecord:
    """One round that is over.

    Attributes:
        round: Its number, from 1.
        attempt: Counts repeats after a resume.
        factors: Which factors were trained, such as ``B`` or ``AB``.
        seconds: From its opening to its commit.
        asked: Sites that were asked.
        contributors: Sites whose change was admitted.
        relative_error: Of the aggregation; ``None`` where it was not measured.
        adapter_sha256: Of the shared adapter after the round.
        manifest_sha256: Of the checkpoint's manifest.
        contributions: One per known site.
        resumed: Whether the run was resumed just before this round.
        proxy: What came of distillation at the server; ``None`` without it.
        means: In secure aggregation, what the sum tells: the mean ``loss`` and
            ``validation_loss`` of the sites in it, and how many changes were ``clipped``. With
            noise for whole sites, what it was (``server.site_noise``).
    """

    round: int
    attempt: int
    factors: str
    seconds: float
    asked: int
    contributors: int
    relative_error: float | None
    adapter_sha256: str
    manifest_sha256: str
    contributions: Sequence[Contribution]
    resumed: bool = False
    proxy: ProxyStep | None = None
    means: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        """Return the bytes that all sites sent."""
        return sum(contribution.bytes_up for contribution in self.contributions)

    @property
    def bytes_down(self) -> int:
        """Return the bytes that all sites received."""
        return sum(contribution.bytes_down for contribution in self.contributions)


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs.

    Attributes:
        name: Of the run.
        status: ``finished`` only if no site was lost.
        reason: Why it stopped, or which sites were lost.
        started: UTC.
        finished: UTC, or ``None``.
        rounds: Committed.
        rounds_planned: Of the job.
        job_sha256: Of the job.
        base_sha256: Of the base.
        seed: Of the job.
    """

    name: str
    status: RunStatus
    reason: str | None
    started: datetime
    finished: datetime | None
    rounds: int
    rounds_planned: int
    job_sha256: str
    base_sha256: str
    seed: int


@dataclass(frozen=True)
class AuditEntry:
    """Something that changed the course of a run."""

    at: datetime
    action: str
    round: int | None
    detail: str


@dataclass(frozen=True)
class KeptAnchor:
    """A line of a site's audit log that the coordinator keeps for it.

    Attributes:
        site: Whose log.
        run: The run that brought it.
        phase: ``round 3``, ``personalize`` or ``evaluate``.
        seq: Number of the line.
        sha256: Its digest.
    """

    site: str
    run: str
    phase: str
    seq: int
    sha256: str
