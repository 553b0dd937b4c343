"""What came of distillation at the server, per round."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("rounds", sa.Column("proxy_accepted", sa.Boolean, nullable=True))
    op.add_column("rounds", sa.Column("proxy_before", sa.Double, nullable=True))
    op.add_column("rounds", sa.Column("proxy_after", sa.Double, nullable=True))
