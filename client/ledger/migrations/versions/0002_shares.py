"""How many sites add a release's noise together; until now every site added all of it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    shares = sa.Column("shares", sa.Integer, nullable=False, server_default="1")
    op.add_column("spends", shares)


def downgrade() -> None:
    """Take it away."""
    op.drop_column("spends", "shares")
