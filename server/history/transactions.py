"""Reads and writes of the history: each is one transaction, and takes effect exactly once.

A database on another machine may be away for a while, and a connection may break at any moment.
Whatever was not committed then left no trace, and is done again for as long as the history's
patience lasts. When the connection breaks while a commit is under way nobody can tell by the
error whether it took effect: so every transaction that writes leaves a token of its own among
what it writes, and before it is done again one looks whether the token is there.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from alembic.util import CommandError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from server.history.database import make_database, shown, upgrade
from server.history.sessions import PATIENCE, for_writing
from server.history.tables import WriteRow
from shared.errors import InputError, StorageError

Result = TypeVar("Result")

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_AWAY = ("08", "57P", "25P03", "53300")
"""How PostgreSQL's codes begin for: no connection, shut down or starting, a transaction that was
left alone for too long, too many connections."""
_LOCKED, _DAMAGED, _READ_ONLY = "55P03", ("XX001", "XX002"), "25006"


class HistoryAwayError(StorageError):
    """The database cannot be reached; nothing was decided, and it may be back any moment."""


class Transactions:
    """One database; carries out what is given as functions of a session.

    Args:
        url: SQLAlchemy's.
        patience: Seconds for which a database that is away is waited for, every time.

    Raises:
        InputError: If the URL is none, or the tables are of a later version.
        HistoryAwayError: If the database cannot be reached.
        StorageError: If it cannot be opened or upgraded.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.shown = shown(url)
        self.patience = patience
        self._engine = make_database(url)
        try:
            self._patiently(lambda: upgrade(self._engine), "cannot be opened")
        except BaseException:
            self._engine.dispose()
            raise
        self._writing = for_writing(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Session], Result]) -> Result:
        """Carry out what only reads; it sees the database as of one moment.

        Raises:
            HistoryAwayError: If the database was away for longer than patience lasts.
            StorageError: If it cannot be used.
        """

        def once() -> Result:
            with Session(self._engine) as session, session.begin():
                return work(session)

        return self._patiently(once, "cannot be used")

    def write(self, work: Callable[[Session], Result]) -> Result:
        """Carry out what writes: exactly once, or not at all if an error is raised.

        Raises:
            HistoryAwayError: If the database was away for longer than patience lasts; what was
                to be written may have been, if it went away in that moment.
            StorageError: If it cannot be used, or it was written before.
        """
        token = uuid.uuid4().hex
        done: list[Result] = []

        def once() -> Result:
            with Session(self._writing) as session, session.begin():
                if done and session.get(WriteRow, token) is not None:
                    return done[0]  # the commit before the connection broke did take effect
                session.add(WriteRow(token=token, at=datetime.now(UTC)))
                done[:] = [work(session)]
            return done[0]

        return self._patiently(once, "cannot be used")

    def _patiently(self, once: Callable[[], Result], what: str) -> Result:
        give_up, pause = None, _SHORTEST_PAUSE
        while True:
            try:
                with self._said(what):
                    return once()
            except HistoryAwayError:
                now = time.monotonic()
                give_up = now + self.patience if give_up is None else give_up
                if now >= give_up:
                    raise
                time.sleep(min(pause, give_up - now))
                pause = min(2 * pause, _LONGEST_PAUSE)

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Turn the database's errors into ours."""
        try:
            yield
        except IntegrityError as error:
            raise StorageError(
                f"run history {self.shown}: recorded before, and nothing is recorded twice "
                f"({_line(error)})"
            ) from error
        except CommandError as error:
            raise InputError(
                f"run history {self.shown}: its tables are none that consilia made ({error}); "
                "choose another history"
            ) from error
        except Exception as error:
            if isinstance(error, SQLAlchemyError | OSError) or hasattr(error, "sqlstate"):
                raise self._ours(error, what) from error
            raise

    def _ours(self, error: Exception, what: str) -> InputError | StorageError:
        cause, where = _line(error), f"run history {self.shown}"
        code = _code(error)
        if _is_away(error):
            return HistoryAwayError(
                f"{where}: the database cannot be reached ({cause}); what was committed is "
                "intact; start the database, or correct CONSILIA_HISTORY, and resume the run"
            )
        if "not a database" in cause or "malformed" in cause or code in _DAMAGED:
            return InputError(
                f"{where}: is damaged, or no database ({cause}); put a copy of it back, or move "
                "it away, which loses its runs"
            )
        if "readonly" in cause or code == _READ_ONLY:
            return InputError(f"{where}: may not be written; choose another --out")
        if "locked" in cause or code == _LOCKED:
            return StorageError(
                f"{where}: another process has been writing it for {PATIENCE:g} seconds; what "
                "was committed is intact; end that process, or choose another --out, and resume "
                "the run"
            )
        return StorageError(
            f"{where}: {what} ({cause}); what was committed is intact; free space if the disk is "
            "full, and resume the run"
        )


def _line(error: Exception) -> str:
    """Return what the driver says, in one line; SQLAlchemy would add the values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _code(error: Exception) -> str:
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None) or ""


def _is_away(error: Exception) -> bool:
    if getattr(error, "connection_invalidated", False):
        return True
    cause = getattr(error, "orig", None) or error
    if not hasattr(cause, "sqlstate"):
        return False
    # Without a code it is the driver itself who could not connect, or could not go on.
    unreached = not cause.sqlstate and any(
        kind.__name__ == "OperationalError" for kind in type(cause).__mro__
    )
    return unreached or _code(error).startswith(_AWAY)
