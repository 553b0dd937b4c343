"""Tables of the ledger. A change here needs a migration in ``migrations/versions``."""

from sqlalchemy import Double, ForeignKey, Integer, LargeBinary, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of all tables, with names for constraints that migrations can refer to."""

    metadata = MetaData(
        naming_convention={
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class LedgerRow(Table):
    """The ledger itself; one row."""

    __tablename__ = "ledger"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    """Random; tells this ledger from others."""
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    """With it, and only with it, a patient's tag can be made from the patient's id."""


class PopulationRow(Table):
    """Patients that are counted together."""

    __tablename__ = "populations"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    tags: Mapped[bytes] = mapped_column(LargeBinary)
    """Of all patients that ever were in it, 16 bytes each, in ascending order."""


class SpendRow(Table):
    """Something that was, or was about to be, released."""

    __tablename__ = "spends"

    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    population_id: Mapped[int] = mapped_column(ForeignKey("populations.id"))
    utc: Mapped[str] = mapped_column(String(40))
    study: Mapped[str] = mapped_column(String(200))
    run: Mapped[str] = mapped_column(String(200))
    round: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    mode: Mapped[str] = mapped_column(String(16))
    data_sha256: Mapped[str] = mapped_column(String(64))
    sampling: Mapped[float] = mapped_column(Double)
    noise: Mapped[float] = mapped_column(Double)
    steps: Mapped[int] = mapped_column(Integer)
    entries: Mapped[int] = mapped_column(Integer)
    clip: Mapped[float] = mapped_column(Double)
    sensitivity: Mapped[float] = mapped_column(Double)
    shares: Mapped[int] = mapped_column(Integer, server_default="1")
    previous_sha256: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
