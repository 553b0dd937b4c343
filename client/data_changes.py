"""Whether a site's records are still those of the run's rounds before.

A digest of table and pictures is kept per run, so that a restart of the agent forgets nothing. It
tells that something changed, and never what.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from client.state import replace_private
from shared.errors import StorageError
from shared.latest import Latest

_RUNS = TypeAdapter(dict[str, str])
_MOST: Final = 200
"""Runs that are remembered; older ones are over."""


def table_digest(table: Path, known: Latest[str]) -> str:
    """Return the sha256 of a table's file; empty if it cannot be read.

    It is read again when the file was written to, not for every request.

    Args:
        table: The file.
        known: Remembers what came of it, for this table.
    """
    try:
        status = table.stat()
        key = str(table), status.st_ino, status.st_size, status.st_mtime_ns
        return known.get(key, lambda: hashlib.sha256(table.read_bytes()).hexdigest())
    except OSError:
        return ""


def content_digest(table: str, pictures: str) -> str:
    """Return what stands for a site's records.

    Args:
        table: ``table_digest`` of what was loaded.
        pictures: ``SiteData.pictures_sha256``.
    """
    return hashlib.sha256(f"{table} {pictures}".encode()).hexdigest()


class DataOfRuns:
    """The digest of the records that every run began with, on the site's disk.

    Args:
        path: The file, readable by its owner only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, str] | None = None

    def before(self, run: str) -> str | None:
        """Return the digest that a run had last; ``None`` if this is its first task.

        Raises:
            StorageError: If the file is damaged.
        """
        return self._known().get(run)

    def remember(self, run: str, sha256: str) -> None:
        """Keep the digest of a run's records.

        Raises:
            StorageError: If it cannot be written.
        """
        others = {name: known for name, known in self._known().items() if name != run}
        latest = dict(list(others.items())[1 - _MOST :]) | {run: sha256}
        replace_private(self._path, json.dumps(latest).encode())
        self._runs = latest

    def _known(self) -> Mapping[str, str]:
        if self._runs is None:
            try:
                self._runs = _RUNS.validate_json(self._path.read_bytes())
            except FileNotFoundError:
                self._runs = {}
            except (OSError, ValidationError):
                raise StorageError(
                    f"{self._path}: damaged or not readable; it tells whether the records changed "
                    "within a run; put back a copy, or move it away if no run is under way"
                ) from None
        return self._runs
