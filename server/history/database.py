"""Opening the history's database: SQLite or PostgreSQL by URL, upgraded by Alembic."""

import importlib.metadata
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from server.history.sessions import for_writing, make_engine
from shared.errors import InputError

_MIGRATIONS = Path(__file__).parent / "migrations"
_EXPECTED = (
    "expected a database URL such as sqlite:///history.db or "
    "postgresql+psycopg://user:password@host/database"
)
_UNKNOWN = "of the given URL"


def make_database(url: str) -> Engine:
    """Return an engine; nothing is connected yet.

    Raises:
        InputError: If the URL cannot be used. What could not be understood of it is not
            quoted, because it may be a part of its password.
    """
    try:
        return make_engine(_parsed(url))
    except NoSuchModuleError as error:
        raise InputError(f"run history {shown(url)}: {_EXPECTED} ({error})") from None
    except ImportError as error:
        raise InputError(
            f"run history {shown(url)}: the database's driver is not installed ({error}); "
            "PostgreSQL's comes with: pip install 'consilia[postgres]'"
        ) from None
    except ArgumentError:
        raise InputError(f"run history {shown(url)}: {_EXPECTED}") from None


def shown(url: str) -> str:
    """Return a URL as it may be shown: without its password and its parameters."""
    try:
        return _parsed(url).set(query={}).render_as_string(hide_password=True)
    except InputError:
        return _UNKNOWN


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(f"run history {_UNKNOWN}: {_EXPECTED}") from None
    place = (parsed.host or "") + (parsed.database or "")
    if "@" in place and parsed.get_backend_name() != "sqlite":
        raise InputError(
            f"run history {_UNKNOWN}: has more than one @; write an @ that belongs to a user's "
            "name or password as %40"
        )
    return parsed


def upgrade(engine: Engine) -> None:
    """Bring the tables to the present version: all of it, or nothing if the process is killed.

    Raises:
        InputError: If the tables are of a version that this program does not know.
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be reached or changed.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        if _is_present(connection, scripts):
            return
    # Another process may be at it: wait for it, then look again.
    with for_writing(engine).begin() as connection:
        if _is_present(connection, scripts):
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _is_present(connection: Connection, scripts: ScriptDirectory) -> bool:
    found = MigrationContext.configure(connection).get_current_revision()
    head = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        ours = importlib.metadata.version("consilia")
        raise InputError(
            f"run history {shown(str(connection.engine.url))}: was written by a later version of "
            f"consilia: its tables are of version {found}, and consilia {ours} knows them up to "
            f"version {head}; use the version that wrote it, or another history"
        )
    return found == head
