"""Opening the history's database: SQLite or PostgreSQL by URL, upgraded by Alembic."""

import sqlite3
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from shared.errors import InputError

_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = "writes"

PATIENCE = 60.0
"""Seconds for which a process waits for another one that is writing the same SQLite file."""
_LOOK_SECONDS = 0.05


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


def for_writing(engine: Engine) -> Engine:
    """Return the same engine for transactions that write."""
    return engine.execution_options(**{_WRITES: True})


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
    for pragma in (f"busy_timeout={round(1000 * PATIENCE)}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: DBAPICursor) -> None:
    """Let readers and a writer not wait for each other; needs the file for itself, once.

    SQLite does not wait for that by itself, whatever its timeout is.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _begin(connection: Connection) -> None:
    """Begin a transaction that holds for changes of the tables too.

    One that reads first and then writes would fail at once if another process has written in
    between; so a writer says from the start that it is one, and waits for its turn.
    """
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(engine: Engine) -> None:
    """Bring the tables to the present version: all of it, or nothing if the process is killed."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine.begin() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
    # Another process may be at it: wait for it, then look again.
    with for_writing(engine).begin() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
