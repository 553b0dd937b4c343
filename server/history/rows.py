"""Between rows of the database and the plain records that the rest of the server knows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast, get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.history.tables import ParticipationRow, RoundRow, RunRow
from server.records import SURPLUS, Contribution, RoundRecord, RunStatus, RunSummary
from shared.adapter import TOWERS, Tower
from shared.messages import Anchor
from shared.results import Kind, ParticipationState, ProxyStep

Metrics = Mapping[tuple[int, int, str], Mapping[str, float]]
"""Numbers by (round, attempt, site) and name."""

_LOST: tuple[ParticipationState, ...] = ("missing", "refused")
_ALL_SITES = ""
"""Whose numbers those are that a sum over the sites told; no site has this name."""
_GRADIENT_NORM, _DISCREPANCY = "gradient_norm_", "discrepancy_"


def bucket(count: int) -> int:
    """Return the lower end of a count's bucket: 0, 1, 2, 5, 10, 20, 50, 100, ..."""
    if count <= 0:
        return 0
    power: int = 10 ** (len(str(count)) - 1)
    return next(step * power for step in (5, 2, 1) if step * power <= count)


def participation_rows(
    row: RoundRow, contributions: Sequence[Contribution]
) -> Iterator[dict[str, object]]:
    """Yield the columns of ``ParticipationRow`` for every site of an attempt."""
    for each in contributions:
        yield {
            "round_id": row.id,
            "run_id": row.run_id,
            "round": row.round,
            "attempt": row.attempt,
            "site": each.site,
            "kind": each.kind,
            "state": each.state,
            "reason": each.reason,
            "image_examples": bucket(each.examples.get("image", 0)),
            "text_examples": bucket(each.examples.get("text", 0)),
            "seconds": each.seconds,
            "work_seconds": each.work_seconds,
            "transfer_seconds": each.transfer_seconds,
            "bytes_up": each.bytes_up,
            "bytes_down": each.bytes_down,
            "clipped": each.clipped,
            "peak_memory_bytes": each.peak_memory_bytes,
            "anchor_seq": each.anchor.seq if each.anchor else None,
            "anchor_sha256": each.anchor.sha256 if each.anchor else None,
        }


def metric_rows(
    row: RoundRow, contributions: Sequence[Contribution]
) -> Iterator[dict[str, object]]:
    """Yield the columns of ``MetricRow`` for every number that a site released in an attempt."""
    for each in contributions:
        numbers = {
            "loss": each.loss,
            "validation_loss": each.validation_loss,
            **{_GRADIENT_NORM + tower: norm for tower, norm in each.gradient_norms.items()},
            **{_DISCREPANCY + tower: ratio for tower, ratio in each.discrepancy.items()},
        }
        for name, value in numbers.items():
            if value is not None:
                yield {
                    "run_id": row.run_id,
                    "round": row.round,
                    "attempt": row.attempt,
                    "site": each.site,
                    "name": name,
                    "value": value,
                }


def mean_rows(row: RoundRow, means: Mapping[str, float]) -> Iterator[dict[str, object]]:
    """Yield the columns of ``MetricRow`` for every number that a sum over the sites told."""
    for name, value in means.items():
        yield {
            "run_id": row.run_id,
            "round": row.round,
            "attempt": row.attempt,
            "site": _ALL_SITES,
            "name": name,
            "value": value,
        }


def contribution_of(row: ParticipationRow, numbers: Mapping[str, float]) -> Contribution:
    """Return what a participation's row and its metrics say."""
    return Contribution(
        site=row.site,
        state=cast(ParticipationState, row.state),
        reason=row.reason,
        kind=cast(Kind, row.kind) if row.kind in get_args(Kind) else None,
        examples={"image": row.image_examples, "text": row.text_examples},
        seconds=row.seconds,
        work_seconds=row.work_seconds,
        transfer_seconds=row.transfer_seconds,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        loss=numbers.get("loss"),
        validation_loss=numbers.get("validation_loss"),
        clipped=row.clipped,
        gradient_norms=_by_tower(numbers, _GRADIENT_NORM),
        discrepancy=_by_tower(numbers, _DISCREPANCY),
        peak_memory_bytes=row.peak_memory_bytes,
        anchor=anchor_of(row),
    )


def anchor_of(row: ParticipationRow) -> Anchor | None:
    """Return which line of its audit log a site answered after."""
    if row.anchor_seq is None or row.anchor_sha256 is None:
        return None
    return Anchor(seq=row.anchor_seq, sha256=row.anchor_sha256)


def _by_tower(numbers: Mapping[str, float], name: str) -> dict[Tower, float]:
    return {tower: numbers[name + tower] for tower in TOWERS if name + tower in numbers}


def record_of(row: RoundRow, metrics: Metrics) -> RoundRecord:
    """Return what a committed round's row says."""
    return RoundRecord(
        round=row.round,
        attempt=row.attempt,
        factors=row.factors,
        seconds=row.seconds,
        asked=row.asked,
        contributors=row.contributors,
        relative_error=row.relative_error,
        adapter_sha256=row.adapter_sha256 or "",
        manifest_sha256=row.manifest_sha256 or "",
        contributions=[
            contribution_of(each, metrics.get((row.round, row.attempt, each.site), {}))
            # Sorted here: databases sort text by rules of their own.
            for each in sorted(row.participations, key=lambda each: each.site)
        ],
        resumed=row.resumed,
        proxy=_proxy_of(row),
        means=dict(metrics.get((row.round, row.attempt, _ALL_SITES), {})),
    )


def _proxy_of(row: RoundRow) -> ProxyStep | None:
    if row.proxy_before is None:
        return None
    accepted = bool(row.proxy_accepted)
    return ProxyStep(before=row.proxy_before, after=row.proxy_after, accepted=accepted)


def summary_of(session: Session, row: RunRow) -> RunSummary:
    """Return one line of the list of runs."""
    rounds = session.scalar(
        select(func.count()).where(RoundRow.run_id == row.id, RoundRow.state == "committed")
    )
    return RunSummary(
        name=row.name,
        status=cast(RunStatus, row.status),
        reason=row.reason,
        started=row.started,
        finished=row.finished,
        rounds=rounds or 0,
        rounds_planned=row.rounds_planned,
        job_sha256=row.job_sha256,
        base_sha256=row.base_sha256,
        seed=row.seed,
    )


def lost_sites(session: Session, run_id: int) -> list[str]:
    """Return the sites that a committed round asked in vain, sorted."""
    sites = session.scalars(
        select(ParticipationRow.site)
        .join(RoundRow, RoundRow.id == ParticipationRow.round_id)
        .where(
            RoundRow.run_id == run_id,
            RoundRow.state == "committed",
            ParticipationRow.state.in_(_LOST),
            func.coalesce(ParticipationRow.reason, "") != SURPLUS,
        )
        .distinct()
    )
    return sorted(sites)
