"""The last line of a site's audit log when it answered, per participation."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("participations", sa.Column("anchor_seq", sa.BigInteger, nullable=True))
    op.add_column("participations", sa.Column("anchor_sha256", sa.String(64), nullable=True))
