"""How Alembic reaches the ledger: through the connection that ``client.ledger`` gives it.

The ledger is a sealed file, so that there is no URL to reach it by.
"""

from alembic import context

from client.ledger.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
