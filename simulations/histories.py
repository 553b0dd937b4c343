"""Where the history of a run is: beside it, in its coordinator's folder, or CONSILIA_HISTORY."""

import os
from pathlib import Path

from server.history import RunHistory

HISTORY = "history.sqlite"
_SQLITE = "sqlite:///"


def history_url(run: Path) -> str:
    """Return the database that holds the history of the runs beside this one.

    A coordinator keeps it beside the folder of its runs.
    """
    beside = run.resolve().parent / HISTORY
    above = beside.parent.parent / HISTORY
    found = above if not beside.exists() and above.exists() else beside
    return os.environ.get("CONSILIA_HISTORY") or f"{_SQLITE}{found}"


def open_history(out: Path) -> RunHistory | None:
    """Open the history of a folder of runs; ``None`` if it has none, and none is made.

    Raises:
        StorageError: If it cannot be opened.
    """
    url = history_url(out / "run")
    if url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).exists():
        return None
    return RunHistory(url)


def known_runs(out: Path) -> set[str]:
    """Return the names of the runs in the history of a folder."""
    history = open_history(out)
    if history is None:
        return set()
    with history:
        return {run.name for run in history.runs()}
