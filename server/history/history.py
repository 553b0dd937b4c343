"""The run history: which rounds count, who contributed, what happened."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Select, delete, func, insert, select
from sqlalchemy.orm import Session, selectinload

from server.history.rows import (
    anchor_of,
    lost_sites,
    mean_rows,
    metric_rows,
    participation_rows,
    record_of,
    summary_of,
)
from server.history.tables import (
    ArtefactRow,
    AuditRow,
    MetricRow,
    ParticipationRow,
    RoundRow,
    RunRow,
    WriteRow,
)
from server.history.transactions import Transactions
from server.records import (
    AuditEntry,
    Contribution,
    KeptAnchor,
    RoundRecord,
    RunStatus,
    RunSummary,
)
from shared.errors import InputError, RunDirectoryError

Given = ParamSpec("Given")
Result = TypeVar("Result")

PATIENT = 300.0
"""Seconds for which a run waits for a history that is away; a command waits for less."""

_TOKENS_KEPT = timedelta(days=1)


def _reads(
    method: Callable[Concatenate["RunHistory", Session, Given], Result],
) -> Callable[Concatenate["RunHistory", Given], Result]:
    """Make a method one transaction that only reads; it is given the session."""

    @wraps(method)
    def carried_out(self: "RunHistory", /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return self._transactions.read(lambda session: method(self, session, *args, **kwargs))

    return carried_out


def _writes(
    method: Callable[Concatenate["RunHistory", Session, Given], Result],
) -> Callable[Concatenate["RunHistory", Given], Result]:
    """Make a method one transaction that takes effect once; it is given the session."""

    @wraps(method)
    def carried_out(self: "RunHistory", /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return self._transactions.write(lambda session: method(self, session, *args, **kwargs))

    return carried_out


class RunHistory:
    """All runs of a coordinator. Every method is one transaction."""

    def __init__(self, url: str, patience: float = 10.0) -> None:
        """Open a database and bring its tables to the present version.

        Args:
            url: SQLAlchemy's, such as ``sqlite:///history.db`` or
                ``postgresql+psycopg://user@host/database``.
            patience: Seconds for which a database that is away is waited for, every time.

        Raises:
            InputError: If the URL is none, or the database is of a later version.
            HistoryAwayError: If it is away for longer than that.
            StorageError: If it cannot be opened or upgraded.
        """
        self._transactions = Transactions(url, patience)

    @property
    def shown(self) -> str:
        """Return the database as it may be named in a message."""
        return self._transactions.shown

    def be_brief(self) -> None:
        """Wait no longer for a database that is away: whoever ends has no time for it."""
        self._transactions.patience = 0.0

    @classmethod
    def at(cls, path: Path) -> Self:
        """Open a SQLite file."""
        return cls(f"sqlite:///{path}")

    def close(self) -> None:
        """Close all connections."""
        self._transactions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_writes
    def start_run(  # noqa: PLR0913 - what a run is made of
        self,
        session: Session,
        name: str,
        *,
        token: str,
        job_sha256: str,
        base_sha256: str,
        seed: int,
        rounds: int,
    ) -> bool:
        """Record that a run begins, or goes on.

        Returns:
            Whether it goes on.

        Raises:
            RunDirectoryError: If the history holds another run of that name.
        """
        session.execute(delete(WriteRow).where(WriteRow.at < datetime.now(UTC) - _TOKENS_KEPT))
        row = session.scalar(_named(name))
        if row is None:
            session.add(
                RunRow(
                    name=name,
                    token=token,
                    job_sha256=job_sha256,
                    base_sha256=base_sha256,
                    seed=seed,
                    rounds_planned=rounds,
                    status="running",
                    started=datetime.now(UTC),
                )
            )
            return False
        if (row.token, row.job_sha256, row.base_sha256) != (token, job_sha256, base_sha256):
            raise RunDirectoryError(
                f"run {name}: the history {self.shown} holds another run of this name; "
                "choose another name or another history"
            )
        row.status, row.reason, row.finished = "running", None, None
        return True

    @_reads
    def knows(self, session: Session, name: str) -> bool:
        """Return whether there is a run of that name."""
        return session.scalar(_named(name)) is not None

    @_writes
    def open_round(self, session: Session, run: str, round_number: int) -> int:
        """Record that a round begins and return the number of this attempt, from 1."""
        run_id = _run(session, run).id
        last = session.scalar(
            select(func.max(RoundRow.attempt)).where(
                RoundRow.run_id == run_id, RoundRow.round == round_number
            )
        )
        attempt = (last or 0) + 1
        session.add(
            RoundRow(
                run_id=run_id,
                round=round_number,
                attempt=attempt,
                state="open",
                opened=datetime.now(UTC),
            )
        )
        return attempt

    @_writes
    def record_round(self, session: Session, run: str, record: RoundRecord) -> None:
        """Commit a round: its row, its participations, metrics and checkpoint, or nothing.

        Raises:
            StorageError: If it cannot be written, or a contribution was recorded before.
        """
        run_id = _run(session, run).id
        row = session.scalar(_attempt(run_id, record.round, record.attempt))
        if row is None:
            row = RoundRow(
                run_id=run_id,
                round=record.round,
                attempt=record.attempt,
                opened=datetime.now(UTC),
            )
            session.add(row)
        row.state, row.closed = "committed", datetime.now(UTC)
        row.factors, row.seconds = record.factors, record.seconds
        row.asked, row.contributors = record.asked, record.contributors
        row.relative_error, row.resumed = record.relative_error, record.resumed
        row.adapter_sha256, row.manifest_sha256 = record.adapter_sha256, record.manifest_sha256
        if record.proxy is not None:
            row.proxy_accepted = record.proxy.accepted
            row.proxy_before, row.proxy_after = record.proxy.before, record.proxy.after
        session.flush()
        _add_participations(session, row, record.contributions)
        means = list(mean_rows(row, record.means))
        if means:
            session.execute(insert(MetricRow), means)
        session.add(
            ArtefactRow(
                run_id=run_id,
                kind="checkpoint",
                round=record.round,
                attempt=record.attempt,
                sha256=record.manifest_sha256,
            )
        )

    @_writes
    def fail_round(
        self,
        session: Session,
        run: str,
        round_number: int,
        attempt: int,
        reason: str,
        contributions: Sequence[Contribution],
    ) -> None:
        """Record that an attempt at a round came to nothing, and why."""
        row = session.scalar(_attempt(_run(session, run).id, round_number, attempt))
        if row is None:
            return
        row.state, row.closed, row.reason = "failed", datetime.now(UTC), reason
        _add_participations(session, row, contributions)

    @_writes
    def withdraw_round(self, session: Session, run: str, round_number: int, reason: str) -> None:
        """Take back a committed round whose checkpoint is damaged; it will be done again."""
        run_id = _run(session, run).id
        rows = session.scalars(_committed(run_id).where(RoundRow.round == round_number))
        for row in rows:
            row.state, row.reason = "withdrawn", reason
        session.add(_audit(run_id, "round-withdrawn", round_number, reason))

    @_writes
    def finish_run(
        self, session: Session, run: str, status: RunStatus, reason: str | None = None
    ) -> RunStatus:
        """Record how a run ended.

        A run that lost a site is never recorded as plainly finished.

        Returns:
            The status that was recorded.
        """
        row = _run(session, run)
        lost = lost_sites(session, row.id)
        if status == "finished" and lost:
            status = "finished-incomplete"
            reason = reason or f"not every contribution arrived: {', '.join(lost)}"
        row.status, row.reason, row.finished = status, reason, datetime.now(UTC)
        return status

    def last_round(self, run: str) -> RoundRecord | None:
        """Return the last committed round."""
        return next(iter(reversed(self.committed_rounds(run))), None)

    @_reads
    def committed_rounds(self, session: Session, run: str) -> list[RoundRecord]:
        """Return all committed rounds in order."""
        run_id = _run(session, run).id
        metrics: dict[tuple[int, int, str], dict[str, float]] = {}
        for metric in session.scalars(select(MetricRow).where(MetricRow.run_id == run_id)):
            key = (metric.round, metric.attempt, metric.site)
            metrics.setdefault(key, {})[metric.name] = metric.value
        rows = session.scalars(_committed(run_id).order_by(RoundRow.round))
        return [record_of(row, metrics) for row in rows]

    @_reads
    def runs(self, session: Session) -> list[RunSummary]:
        """Return all runs, the latest first."""
        rows = session.scalars(select(RunRow).order_by(RunRow.started.desc(), RunRow.id.desc()))
        return [summary_of(session, row) for row in rows]

    @_reads
    def run(self, session: Session, name: str) -> RunSummary:
        """Return one run.

        Raises:
            InputError: If there is none of that name.
        """
        return summary_of(session, _run(session, name))

    @_writes
    def audit(
        self,
        session: Session,
        run: str,
        action: str,
        round_number: int | None = None,
        detail: str = "",
    ) -> None:
        """Record something that changed the course of a run."""
        session.add(_audit(_run(session, run).id, action, round_number, detail))

    @_reads
    def audit_trail(self, session: Session, run: str) -> list[AuditEntry]:
        """Return what changed the course of a run, in order."""
        rows = session.scalars(
            select(AuditRow).where(AuditRow.run_id == _run(session, run).id).order_by(AuditRow.id)
        )
        return [AuditEntry(row.at, row.action, row.round, row.detail) for row in rows]

    @_reads
    def anchors(self, session: Session, run: str) -> list[KeptAnchor]:
        """Return the lines of the sites' audit logs that the rounds of a run brought, in order.

        Those of attempts that came to nothing are among them: the sites answered.
        """
        rows = session.scalars(
            select(ParticipationRow).where(ParticipationRow.run_id == _run(session, run).id)
        )
        found = [(row, anchor_of(row)) for row in rows]
        return [
            KeptAnchor(row.site, run, f"round {row.round}", anchor.seq, anchor.sha256)
            for row, anchor in sorted(found, key=lambda each: _place(each[0]))
            if anchor is not None
        ]


def _place(row: ParticipationRow) -> tuple[int, int, str]:
    # Sorted here: databases sort text by rules of their own.
    return row.round, row.attempt, row.site


def _named(name: str) -> Select[RunRow]:
    return select(RunRow).where(RunRow.name == name)


def _run(session: Session, name: str) -> RunRow:
    row = session.scalar(_named(name))
    if row is None:
        raise InputError(f"run {name}: is not in the history")
    return row


def _attempt(run_id: int, round_number: int, attempt: int) -> Select[RoundRow]:
    return select(RoundRow).where(
        RoundRow.run_id == run_id, RoundRow.round == round_number, RoundRow.attempt == attempt
    )


def _committed(run_id: int) -> Select[RoundRow]:
    return (
        select(RoundRow)
        .where(RoundRow.run_id == run_id, RoundRow.state == "committed")
        .options(selectinload(RoundRow.participations))
    )


def _add_participations(
    session: Session, row: RoundRow, contributions: Sequence[Contribution]
) -> None:
    # As tables and not as objects: a thousand sites have five thousand rows in every round.
    for table, rows in (
        (ParticipationRow, list(participation_rows(row, contributions))),
        (MetricRow, list(metric_rows(row, contributions))),
    ):
        if rows:
            session.execute(insert(table), rows)


def _audit(run_id: int, action: str, round_number: int | None, detail: str) -> AuditRow:
    return AuditRow(
        run_id=run_id, at=datetime.now(UTC), action=action, round=round_number, detail=detail
    )
