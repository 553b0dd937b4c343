"""The ledger as one file: a SQLite database in memory, written whole and in one step.

A database that is only ever replaced as a whole has no half-written pages and no journal, can be
sealed like any other file, and is so small that this costs nothing.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from client.keeping import Keeping
from shared.errors import IdentityError, RefusedError

_MIGRATIONS = Path(__file__).parent / "migrations"
_MAGIC: Final = b"consilia ledger 1\n"
_DIGEST_BYTES = 32
_RUN: Final = "privacy-ledger"
"""Names the ledger's data key among those of the runs."""


class LedgerFile:
    """Where the ledger is.

    Args:
        path: The file.
        keeping: How private files are kept.
    """

    def __init__(self, path: Path, keeping: Keeping) -> None:
        self.path = path
        self._keeping = keeping

    @contextmanager
    def session(self) -> Iterator[tuple[Session, sqlite3.Connection]]:
        """Yield the tables as they are on the disk, or new ones; ``save`` writes them.

        Raises:
            RefusedError: ``privacy-ledger`` if the file is not what was written.
        """
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
            if self.path.exists():
                memory.deserialize(self._content())
            engine = create_engine(
                "sqlite://", creator=lambda: memory, poolclass=StaticPool, pool_reset_on_return=None
            )
            try:
                with engine.begin() as connection:
                    _upgrade(connection)
                with Session(engine) as session:
                    yield session, memory
            except (SQLAlchemyError, CommandError, ValidationError, sqlite3.Error) as error:
                raise ledger_refused(
                    f"{self.path}: is no ledger of this version ({type(error).__name__})"
                ) from None

    def save(self, memory: sqlite3.Connection) -> None:
        """Replace the file by what is in memory, in one step, and wait for the disk.

        Raises:
            StorageError: If it cannot be written; then nothing may leave.
        """
        tables = memory.serialize()
        content = _MAGIC + hashlib.sha256(tables).digest() + tables
        self._keeping.write(self.path, content, _RUN)

    def _content(self) -> bytes:
        try:
            content = self._keeping.read(self.path)
        except (OSError, IdentityError) as error:
            raise ledger_refused(f"{self.path}: cannot be opened ({error})") from None
        start = len(_MAGIC) + _DIGEST_BYTES
        tables = content[start:]
        if content[:start] != _MAGIC + hashlib.sha256(tables).digest():
            raise ledger_refused(f"{self.path}: was changed or damaged after it was written")
        return tables


def ledger_refused(what: str) -> RefusedError:
    """Return the refusal for a ledger that cannot be relied on."""
    return RefusedError(
        "privacy-ledger",
        f"{what}; nothing is released without a ledger of all that was released before; put back "
        "the newest copy of the site's privacy folder, or count these patients as spent",
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


@cache
def _head() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _upgrade(connection: Connection) -> None:
    """Bring the tables to the present version, in memory; they are saved with the next entry."""
    if MigrationContext.configure(connection).get_current_revision() == _head():
        return
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
