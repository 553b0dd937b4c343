"""Tables of the run history. A change here needs a migration in ``migrations/versions``."""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always UTC; SQLite stores no time zone of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - of SQLAlchemy's interface
    ) -> datetime | None:
        """Store UTC."""
        return value.astimezone(UTC) if value else None

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - of SQLAlchemy's interface
    ) -> datetime | None:
        """Return UTC, with its time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of all tables, with names for constraints that migrations can refer to."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class RunRow(Table):
    """A job being carried out, or carried out."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    token: Mapped[str] = mapped_column(String(32))
    job_sha256: Mapped[str] = mapped_column(String(64))
    base_sha256: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    rounds_planned: Mapped[int]
    status: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    started: Mapped[datetime] = mapped_column(UtcDateTime)
    finished: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RoundRow(Table):
    """One attempt at a round; ``committed`` once its checkpoint is named."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("run_id", "round", "attempt"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), index=True)
    round: Mapped[int]
    attempt: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    opened: Mapped[datetime] = mapped_column(UtcDateTime)
    closed: Mapped[datetime | None] = mapped_column(UtcDateTime)
    factors: Mapped[str] = mapped_column(String(8), default="")
    seconds: Mapped[float] = mapped_column(default=0.0)
    asked: Mapped[int] = mapped_column(default=0)
    contributors: Mapped[int] = mapped_column(default=0)
    relative_error: Mapped[float | None]
    resumed: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None] = mapped_column(Text)
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    manifest_sha256: Mapped[str | None] = mapped_column(String(64))
    proxy_accepted: Mapped[bool | None]
    """Of distillation at the server; nothing in rounds without it."""
    proxy_before: Mapped[float | None]
    proxy_after: Mapped[float | None]
    participations: Mapped[list["ParticipationRow"]] = relationship(cascade="all, delete-orphan")


class ParticipationRow(Table):
    """What became of one site in one attempt at a round."""

    __tablename__ = "participations"
    __table_args__ = (UniqueConstraint("run_id", "round", "attempt", "site"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), index=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    round: Mapped[int]
    attempt: Mapped[int]
    site: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str | None] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    image_examples: Mapped[int] = mapped_column(default=0)
    """Lower end of a bucket (1, 2, 5, 10, 20, ...), not a count."""
    text_examples: Mapped[int] = mapped_column(default=0)
    """As ``image_examples``."""
    seconds: Mapped[float | None]
    work_seconds: Mapped[float]
    transfer_seconds: Mapped[float]
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    clipped: Mapped[bool]
    peak_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    anchor_seq: Mapped[int | None] = mapped_column(BigInteger)
    """Of the last line of the site's audit log when it answered."""
    anchor_sha256: Mapped[str | None] = mapped_column(String(64))


class MetricRow(Table):
    """One released number of one site in one attempt at a round."""

    __tablename__ = "metrics"
    __table_args__ = (UniqueConstraint("run_id", "round", "attempt", "site", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    round: Mapped[int]
    attempt: Mapped[int]
    site: Mapped[str] = mapped_column(String(200))
    name: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]


class ArtefactRow(Table):
    """A file that belongs to a run, by its digest."""

    __tablename__ = "artefacts"
    __table_args__ = (UniqueConstraint("run_id", "kind", "round", "attempt"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    kind: Mapped[str] = mapped_column(String(32))
    round: Mapped[int]
    attempt: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))


class AuditRow(Table):
    """Something that changed the course of a run."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    action: Mapped[str] = mapped_column(String(32))
    round: Mapped[int | None]
    detail: Mapped[str] = mapped_column(Text, default="")


class WriteRow(Table):
    """The token of a transaction that wrote; see ``server.history.transactions``."""

    __tablename__ = "writes"

    token: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
