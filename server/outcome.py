"""What a run came to, built from the history's records and from what the sites evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.records import Contribution, RoundRecord
from shared.adapter import TOWERS, SharedAdapter, Tower
from shared.privacy.statement import Statement
from shared.results import CoursePoint, Kind, ParticipationCell, RoundCost, SiteEvaluation

NOT_JOINED = "not-joined"


@dataclass
class SiteLog:
    """What the coordinator saw of one site.

    Attributes:
        kind: What its training records are; ``None`` if it never said so.
        examples: Released training records per tower.
        participation: One cell per committed round, in order.
        course: Validation loss of the shared adapter by round; 0 is the base.
        seconds: By part: ``train``, ``transfer``, ``wait``, ``personalize``, ``evaluate``.
        bytes_up: From the site.
        bytes_down: To the site.
        peak_memory_bytes: Of the site's process.
        gradient_norms: Per tower, one mean norm per committed round (0 if not trained).
        discrepancy: Per tower, how far it ran ahead in every committed round (0 unless both
            towers were trained).
    """

    kind: Kind | None = None
    examples: dict[Tower, int] = field(default_factory=dict)
    participation: list[ParticipationCell] = field(default_factory=list)
    course: list[CoursePoint] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    peak_memory_bytes: int = 0
    gradient_norms: dict[Tower, list[float]] = field(default_factory=dict)
    discrepancy: dict[Tower, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOutcome:
    """A run that reached its end.

    Attributes:
        shared: The shared adapter after the last round.
        rounds: Committed rounds.
        sites: By name; sites that never described themselves included.
        round_costs: One per committed round.
        evaluations: By site; absent where a site did not answer.
        complete: Whether nothing that was asked for is missing.
        clipped: Contributions that were scaled down.
        resumed_rounds: Rounds before which the run was resumed.
        lost: Sites (or phases of sites) that are missing, with the reason.
        relative_error: Of the aggregation, mean over rounds; ``None`` if never measured.
        seconds: Wall seconds of rounds and closing phases, interruptions left out.
        privacy: What the coordinator's own noise promises every site; ``None`` without any.
    """

    shared: SharedAdapter
    rounds: int
    sites: dict[str, SiteLog]
    round_costs: list[RoundCost]
    evaluations: dict[str, SiteEvaluation]
    complete: bool
    clipped: int
    resumed_rounds: list[int]
    lost: dict[str, str]
    relative_error: float | None
    seconds: float
    privacy: Statement | None = None


@dataclass(frozen=True)
class Closing:
    """What the closing phases left: records by site, and whom they lost.

    Attributes:
        records: ``records[phase][site]``, phases ``personalize`` and ``evaluate``.
        lost: Site and phase, with the reason.
        seconds: Of both phases together, in this process.
    """

    records: Mapping[str, Mapping[str, Mapping[str, Any]]]
    lost: Mapping[str, str]
    seconds: float = 0.0


def build_outcome(
    shared: SharedAdapter,
    records: Sequence[RoundRecord],
    closing: Closing,
    known: Mapping[str, tuple[Kind, Mapping[Tower, int]]],
    privacy: Statement | None = None,
) -> RunOutcome:
    """Put a run's outcome together.

    Args:
        shared: After the last round.
        records: All committed rounds, in order.
        closing: The closing phases.
        known: Kind and released counts of every site that described itself.
        privacy: What the coordinator's own noise promises, if it adds any.
    """
    names = sorted({c.site for record in records for c in record.contributions} | set(known))
    by_site = [{c.site: c for c in record.contributions} for record in records]
    sites = {name: _site_log(name, records, by_site) for name in names}
    for name, (kind, examples) in known.items():
        sites[name].kind, sites[name].examples = kind, dict(examples)
    _add_closing(sites, closing, len(records))
    evaluations = {
        site: SiteEvaluation.model_validate(record["evaluation"])
        for site, record in sorted(closing.records.get("evaluate", {}).items())
    }
    contributions = [c for record in records for c in record.contributions]
    errors = [r.relative_error for r in records if r.relative_error is not None]
    lost = {c.site: c.reason or c.state for c in contributions if c.lost} | dict(closing.lost)
    return RunOutcome(
        shared=shared,
        rounds=len(records),
        sites=sites,
        round_costs=[_cost(record) for record in records],
        evaluations=evaluations,
        complete=not lost,
        clipped=sum(c.clipped for c in contributions)
        + sum(round(record.means.get("clipped", 0.0)) for record in records),
        resumed_rounds=[record.round for record in records if record.resumed],
        lost=lost,
        relative_error=sum(errors) / len(errors) if errors else None,
        seconds=sum(record.seconds for record in records) + closing.seconds,
        privacy=privacy,
    )


def _site_log(
    name: str,
    records: Sequence[RoundRecord],
    by_site: Sequence[Mapping[str, Contribution]],
) -> SiteLog:
    log = SiteLog(seconds=dict.fromkeys(("train", "transfer", "wait"), 0.0))
    absent = Contribution(name, "idle", reason=NOT_JOINED)
    for record, contributions in zip(records, by_site, strict=True):
        each = contributions.get(name, absent)
        log.kind = each.kind or log.kind
        log.examples = dict(each.examples) or log.examples
        log.participation.append(each.cell())
        if each.validation_loss is not None:
            # Measured on the adapter that the round began with.
            log.course.append(CoursePoint(round=record.round - 1, loss=each.validation_loss))
        for tower in TOWERS:
            log.gradient_norms.setdefault(tower, []).append(each.gradient_norms.get(tower, 0.0))
            log.discrepancy.setdefault(tower, []).append(each.discrepancy.get(tower, 0.0))
        log.seconds["train"] += each.work_seconds
        log.seconds["transfer"] += each.transfer_seconds
        if each.state != "idle":
            rest = record.seconds - each.work_seconds - each.transfer_seconds
            log.seconds["wait"] += max(0.0, rest)
        log.bytes_up += each.bytes_up
        log.bytes_down += each.bytes_down
        log.peak_memory_bytes = max(log.peak_memory_bytes, each.peak_memory_bytes)
    return log


def _add_closing(sites: Mapping[str, SiteLog], closing: Closing, rounds: int) -> None:
    for phase, records in closing.records.items():
        for site, record in records.items():
            log = sites.get(site)
            if log is None:
                continue
            log.seconds[phase] = float(record["seconds"])
            log.bytes_up += int(record["bytes_up"])
            log.bytes_down += int(record["bytes_down"])
            log.peak_memory_bytes = max(log.peak_memory_bytes, int(record["peak_memory_bytes"]))
            loss = record.get("validation_loss")
            if loss is not None and not any(point.round == rounds for point in log.course):
                log.course.append(CoursePoint(round=rounds, loss=float(loss)))


def _cost(record: RoundRecord) -> RoundCost:
    return RoundCost(
        round=record.round,
        seconds=record.seconds,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        contributors=record.contributors,
        asked=record.asked,
        resumed=record.resumed,
        proxy=record.proxy,
        loss=record.means.get("loss"),
        validation_loss=record.means.get("validation_loss"),
    )
