"""The run history: which rounds count, who contributed, what happened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from alembic.util import CommandError
from sqlalchemy import Select, func, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, selectinload

from server.history.database import PATIENCE, for_writing, open_database, shown
from server.history.rows import (
    lost_sites,
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
)
from server.records import AuditEntry, Contribution, RoundRecord, RunStatus, RunSummary
from shared.errors import InputError, RunDirectoryError, StorageError


class RunHistory:
    """All runs of a coordinator. Every method is one transaction."""

    def __init__(self, url: str) -> None:
        """Open a database and bring its tables to the present version.

        Args:
            url: SQLAlchemy's, such as ``sqlite:///history.db`` or
                ``postgresql+psycopg://user@host/database``.

        Raises:
            InputError: If the URL is none, or the database is of a later version.
            StorageError: If it cannot be opened or upgraded.
        """
        self.shown = shown(url)
        """The database, as it may be named in a message."""
        with self._failures("cannot be opened"):
            self._engine = open_database(url)

    @classmethod
    def at(cls, path: Path) -> Self:
        """Open a SQLite file."""
        return cls(f"sqlite:///{path}")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_run(
        self,
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
        with self._writing() as session:
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

    def knows(self, name: str) -> bool:
        """Return whether there is a run of that name."""
        with self._reading() as session:
            return session.scalar(_named(name)) is not None

    def open_round(self, run: str, round_number: int) -> int:
        """Record that a round begins and return the number of this attempt, from 1."""
        with self._writing() as session:
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

    def record_round(self, run: str, record: RoundRecord) -> None:
        """Commit a round: its row, its participations, metrics and checkpoint, or nothing.

        Raises:
            StorageError: If it cannot be written, or a contribution was recorded before.
        """
        with self._writing() as session:
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
            session.add(
                ArtefactRow(
                    run_id=run_id,
                    kind="checkpoint",
                    round=record.round,
                    attempt=record.attempt,
                    sha256=record.manifest_sha256,
                )
            )

    def fail_round(
        self,
        run: str,
        round_number: int,
        attempt: int,
        reason: str,
        contributions: Sequence[Contribution],
    ) -> None:
        """Record that an attempt at a round came to nothing, and why."""
        with self._writing() as session:
            row = session.scalar(_attempt(_run(session, run).id, round_number, attempt))
            if row is None:
                return
            row.state, row.closed, row.reason = "failed", datetime.now(UTC), reason
            _add_participations(session, row, contributions)

    def withdraw_round(self, run: str, round_number: int, reason: str) -> None:
        """Take back a committed round whose checkpoint is damaged; it will be done again."""
        with self._writing() as session:
            run_id = _run(session, run).id
            rows = session.scalars(_committed(run_id).where(RoundRow.round == round_number))
            for row in rows:
                row.state, row.reason = "withdrawn", reason
            session.add(_audit(run_id, "round-withdrawn", round_number, reason))

    def finish_run(self, run: str, status: RunStatus, reason: str | None = None) -> RunStatus:
        """Record how a run ended.

        A run that lost a site is never recorded as plainly finished.

        Returns:
            The status that was recorded.
        """
        with self._writing() as session:
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

    def committed_rounds(self, run: str) -> list[RoundRecord]:
        """Return all committed rounds in order."""
        with self._reading() as session:
            run_id = _run(session, run).id
            metrics: dict[tuple[int, int, str], dict[str, float]] = {}
            for metric in session.scalars(select(MetricRow).where(MetricRow.run_id == run_id)):
                key = (metric.round, metric.attempt, metric.site)
                metrics.setdefault(key, {})[metric.name] = metric.value
            rows = session.scalars(_committed(run_id).order_by(RoundRow.round))
            return [record_of(row, metrics) for row in rows]

    def runs(self) -> list[RunSummary]:
        """Return all runs, the latest first."""
        with self._reading() as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.started.desc(), RunRow.id.desc()))
            return [summary_of(session, row) for row in rows]

    def run(self, name: str) -> RunSummary:
        """Return one run.

        Raises:
            InputError: If there is none of that name.
        """
        with self._reading() as session:
            return summary_of(session, _run(session, name))

    def audit(
        self, run: str, action: str, round_number: int | None = None, detail: str = ""
    ) -> None:
        """Record something that changed the course of a run."""
        with self._writing() as session:
            session.add(_audit(_run(session, run).id, action, round_number, detail))

    def audit_trail(self, run: str) -> list[AuditEntry]:
        """Return what changed the course of a run, in order."""
        with self._reading() as session:
            rows = session.scalars(
                select(AuditRow)
                .where(AuditRow.run_id == _run(session, run).id)
                .order_by(AuditRow.id)
            )
            return [AuditEntry(row.at, row.action, row.round, row.detail) for row in rows]

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._failures("cannot be used"), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        engine = for_writing(self._engine)
        with self._failures("cannot be used"), Session(engine) as session, session.begin():
            yield session

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise StorageError(
                f"run history {self.shown}: recorded before, and nothing is recorded twice "
                f"({error.orig})"
            ) from error
        except CommandError as error:
            raise InputError(
                f"run history {self.shown}: is of a later version of consilia ({error}); "
                "use that version, or another history"
            ) from error
        except (SQLAlchemyError, OSError) as error:
            cause = getattr(error, "orig", None) or error
            if "not a database" in str(cause) or "malformed" in str(cause):
                raise InputError(
                    f"run history {self.shown}: is damaged, or no database ({cause}); put a "
                    "copy of it back, or move it away, which loses its runs"
                ) from error
            if "readonly" in str(cause):
                raise InputError(
                    f"run history {self.shown}: may not be written; choose another --out"
                ) from error
            if "locked" in str(cause):
                raise StorageError(
                    f"run history {self.shown}: another process has been writing it for "
                    f"{PATIENCE:g} seconds; what was committed is intact; end that process, or "
                    "choose another --out, and resume the run"
                ) from error
            raise StorageError(
                f"run history {self.shown}: {what} ({cause}); what was committed is "
                "intact; free space if the disk is full, and resume the run"
            ) from error


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
