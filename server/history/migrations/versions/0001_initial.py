"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("job_sha256", sa.String(64), nullable=False),
        sa.Column("base_sha256", sa.String(64), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("rounds_planned", sa.Integer, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("started", _TIME, nullable=False),
        sa.Column("finished", _TIME),
        sa.UniqueConstraint("name", name="uq_runs_name"),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer, primary_key=True),
        _run_id("rounds"),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("opened", _TIME, nullable=False),
        sa.Column("closed", _TIME),
        sa.Column("factors", sa.String(8), nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("contributors", sa.Integer, nullable=False),
        sa.Column("relative_error", sa.Double),
        sa.Column("resumed", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("adapter_sha256", sa.String(64)),
        sa.Column("manifest_sha256", sa.String(64)),
        sa.UniqueConstraint("run_id", "round", "attempt", name="uq_rounds_run_id"),
    )
    op.create_index("ix_rounds_run_id", "rounds", ["run_id"])
    _participations()
    op.create_table(
        "metrics",
        sa.Column("id", sa.Integer, primary_key=True),
        _run_id("metrics"),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("site", sa.String(200), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.UniqueConstraint("run_id", "round", "attempt", "site", "name", name="uq_metrics_run_id"),
    )
    op.create_table(
        "artefacts",
        sa.Column("id", sa.Integer, primary_key=True),
        _run_id("artefacts"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.UniqueConstraint("run_id", "kind", "round", "attempt", name="uq_artefacts_run_id"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        _run_id("audit"),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_audit_run_id", "audit", ["run_id"])


def downgrade() -> None:
    """Remove all tables, with everything in them."""
    for table in ("audit", "artefacts", "metrics", "participations", "rounds", "runs"):
        op.drop_table(table)


def _participations() -> None:
    op.create_table(
        "participations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "round_id",
            sa.Integer,
            sa.ForeignKey("rounds.id", name="fk_participations_round_id"),
            nullable=False,
        ),
        _run_id("participations"),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("site", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(16)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("image_examples", sa.Integer, nullable=False),
        sa.Column("text_examples", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("work_seconds", sa.Double, nullable=False),
        sa.Column("transfer_seconds", sa.Double, nullable=False),
        sa.Column("bytes_up", sa.BigInteger, nullable=False),
        sa.Column("bytes_down", sa.BigInteger, nullable=False),
        sa.Column("clipped", sa.Boolean, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("run_id", "round", "attempt", "site", name="uq_participations_run_id"),
    )
    op.create_index("ix_participations_round_id", "participations", ["round_id"])


def _run_id(table: str) -> sa.Column[int]:
    return sa.Column(
        "run_id", sa.Integer, sa.ForeignKey("runs.id", name=f"fk_{table}_run_id"), nullable=False
    )
