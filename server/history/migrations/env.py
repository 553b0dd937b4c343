"""How Alembic reaches the database: through the connection that ``server.history`` gives it.

From a shell (to write a new migration): ``alembic -x url=sqlite:///history.db ...``.
"""

from alembic import context
from sqlalchemy import Connection, create_engine

from server.history.tables import Table


def _upgrade(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _upgrade(given)
else:
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as opened:
        _upgrade(opened)
