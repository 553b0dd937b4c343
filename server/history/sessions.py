"""What every connection to the history is told before it is used, on SQLite and PostgreSQL.

Both are made to do the same. A transaction that writes waits until it is the only one that does,
from its first statement on; one that only reads sees the history as it was at one moment and waits
for nobody. A commit is on the disk when it returns. What waits does so for ``PATIENCE`` at most.
"""

import sqlite3
import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.pool import ConnectionPoolEntry

PATIENCE = 60.0
"""Seconds for which a process waits for another one that is writing the same history."""

_LOOK_SECONDS = 0.05
_WRITES = "writes"
_WRITERS = int.from_bytes(b"consilia")
"""Names the lock of PostgreSQL that the one who writes holds."""

_FORGOTTEN_SECONDS = 30
"""So long a process that went away without a word may keep others from writing."""

_NETWORK: Final = {
    "application_name": "consilia",
    "connect_timeout": "5",
    # A server whose machine or network went away says nothing: notice it within half a minute.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}


def make_engine(url: URL) -> Engine:
    """Return an engine whose connections keep the promises above; nothing is connected yet."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    return _postgresql(url) if url.get_backend_name() == "postgresql" else create_engine(url)


def for_writing(engine: Engine) -> Engine:
    """Return the same engine for transactions that write."""
    options: dict[str, object] = {_WRITES: True}
    if engine.dialect.name == "postgresql":
        # Sees what the one before it has written while it waited for its turn.
        options["isolation_level"] = "READ COMMITTED"
    return engine.execution_options(**options)


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get(_WRITES, False))


def _postgresql(url: URL) -> Engine:
    options = (
        f"-c lock_timeout={round(1000 * PATIENCE)} "
        f"-c idle_in_transaction_session_timeout={1000 * _FORGOTTEN_SECONDS} "
        "-c synchronous_commit=on"
    )
    query = {"options": options, **_NETWORK, **url.query}
    # A transaction that only reads sees the history as of one moment, as it does on SQLite.
    engine = create_engine(
        url.set(query=query), pool_pre_ping=True, isolation_level="REPEATABLE READ"
    )
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _begin_postgresql(connection: Connection) -> None:
    if _writes(connection):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _sqlite(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_pragmas(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # Python's driver would commit before every CREATE TABLE, and a kill in the middle of an
    # upgrade would leave half a database. Transactions are begun by ``_begin_sqlite`` instead.
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


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction that holds for changes of the tables too.

    One that reads first and then writes would fail at once if another process has written in
    between; so a writer says from the start that it is one, and waits for its turn.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")
