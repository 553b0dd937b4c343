"""The audit log: one line for everything that left the site, each chained to the one before.

A line holds the sha256 of the whole line before it, so that a line that was changed, removed
or put in later breaks the chain. What was cut off at the end can only be noticed against a
copy of the last digest kept elsewhere.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from client.state import private_folder
from shared.errors import InputError, StorageError

_FIRST = "0" * 64


class AuditLog:
    """An append-only JSONL file with a chain of digests; one process at a time writes it.

    A line that a crash cut short belongs to a reply that never left, so it is removed when
    the log is opened again.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        private_folder(path.parent)
        self.path = path
        self._count, self._size, self._last = self._end()

    def append(self, *, run: str, round_number: int, what: str, body: bytes) -> None:
        """Write the line for a body that is about to leave, and wait until it is on disk.

        Raises:
            StorageError: If it cannot be written; then the body must not leave.
        """
        if self._size != _size(self.path):  # another process of this site wrote in between
            self._count, self._size, self._last = self._end()
        entry = {
            "seq": self._count + 1,
            "utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": run,
            "round": round_number,
            "what": what,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "prev_sha256": self._last,
        }
        line = (json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n").encode()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(descriptor)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from None
        self._count += 1
        self._size += len(line)
        self._last = hashlib.sha256(line).hexdigest()

    def _end(self) -> tuple[int, int, str]:
        """Return the number of lines, the bytes and the last digest of the log as it is."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self.path, sum(len(line) for line in lines[:-1]))
            lines.pop()
        last = hashlib.sha256(lines[-1]).hexdigest() if lines else _FIRST
        return len(lines), sum(len(line) for line in lines), last


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def verify(path: Path) -> int:
    """Return how many lines an audit log has, after checking the whole chain.

    Raises:
        InputError: Naming the first line that does not follow from the one before it.
    """
    last = _FIRST
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            sound = entry["seq"] == number and entry["prev_sha256"] == last
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound or not line.endswith(b"\n"):
            raise InputError(
                f"{path}: line {number} does not follow from the line before it: the log was "
                "changed after it was written"
            )
        last = hashlib.sha256(line).hexdigest()
    return len(lines)
