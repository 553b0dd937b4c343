"""Opening the history's database: SQLite or PostgreSQL by URL, upgraded by Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from shared.errors import InputError

_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES_TABLES = "writes_tables"


def open_database(url: str) -> Engine:
    """Return an engine whose tables are of the present version.

    Raises:
        InputError: If the URL cannot be used.
        alembic.util.CommandError: If the database is of a later version.
        sqlalchemy.exc.SQLAlchemyError: If it cannot be opened or upgraded.
    """
    try:
        engine = _engine(url)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InputError(
            f"run history {shown(url)}: expected a database URL such as sqlite:///history.db "
            f"({error})"
        ) from None
    _upgrade(engine)
    return engine


def shown(url: str) -> str:
    """Return a URL as it may be shown, without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "of the given URL"


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # Python's driver would commit before every CREATE TABLE, and a kill in the middle of an
    # upgrade would leave half a database. Transactions are begun by ``_begin`` instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL waits for the disk at every commit: a committed round survives a power cut.
    for pragma in (
        "busy_timeout=10000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Begin a transaction that holds for changes of the tables too."""
    immediate = connection.get_execution_options().get(_WRITES_TABLES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _upgrade(engine: Engine) -> None:
    """Bring the tables to the present version: all of it, or nothing if the process is killed."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine.begin() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
    # Another process may be at it: wait for it, then look again.
    writing = engine.execution_options(**{_WRITES_TABLES: True})
    with writing.begin() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
