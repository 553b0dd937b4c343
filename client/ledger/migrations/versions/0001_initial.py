"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "ledger",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "populations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tags", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("name", name="uq_populations_name"),
    )
    population = sa.ForeignKey("populations.id", name="fk_spends_population_id")
    op.create_table(
        "spends",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("population_id", sa.Integer, population, nullable=False),
        sa.Column("utc", sa.String(40), nullable=False),
        sa.Column("study", sa.String(200), nullable=False),
        sa.Column("run", sa.String(200), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("data_sha256", sa.String(64), nullable=False),
        sa.Column("sampling", sa.Double, nullable=False),
        sa.Column("noise", sa.Double, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.Column("clip", sa.Double, nullable=False),
        sa.Column("sensitivity", sa.Double, nullable=False),
        sa.Column("previous_sha256", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    """Take all tables away."""
    for table in ("spends", "populations", "ledger"):
        op.drop_table(table)
