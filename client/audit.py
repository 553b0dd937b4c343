"""The audit log: a line for every decision and for everything that left the site, in a chain.

A line holds the sha256 of the whole line before it, so that a line that was changed, removed
or put in later breaks the chain. What was cut off at the end, or written anew as a whole, can
only be noticed against a copy of a digest kept elsewhere: every reply carries the latest
(``AuditLog.head``), and the coordinator keeps them. ``client.audit_check`` looks.

No body is handed over before its line is on the disk. A process that answers for many sites
waits once for all of their lines (``on_disk_together``) instead of once for each.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from client.state import digest_of, private_folder
from shared.errors import StorageError
from shared.files import write_whole
from shared.messages import Anchor

FIRST = "0" * 64
"""What the first line holds in place of the digest of a line before it."""

_AT_ONCE = 16
"""Files that are waited for at a time; the disk writes those that come together in one go."""

_written: ContextVar[dict[Path, None] | None] = ContextVar("written", default=None)
"""Logs whose last lines are not yet on the disk, inside of ``on_disk_together``."""


@contextmanager
def on_disk_together() -> Iterator[None]:
    """Let the lines written in the block reach the disk together, before it is left.

    What the block released must not be handed over before the block has ended well. Inside of
    another such block it is the outer one that waits.

    Raises:
        StorageError: If a line cannot be written; then no body of the block may leave.
    """
    if _written.get() is not None:
        yield
        return
    written: dict[Path, None] = {}
    outside = _written.set(written)
    try:
        yield
    finally:
        _written.reset(outside)
        _sync(list(written))


class AuditLog:
    """An append-only JSONL file with a chain of digests.

    The agent writes it, and now and then a command of the same site; a lock on the file keeps
    their lines apart. A line that a crash cut short belongs to a reply that never left, so it is
    removed when the log is opened again.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        private_folder(path.parent)
        self.path = path
        self._lock = threading.Lock()
        self._count, self._size, self._last = self._end()

    def append(
        self,
        *,
        run: str,
        round_number: int,
        what: str,
        body: bytes | None = None,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        """Write a line, and wait until it is on disk.

        Inside of ``on_disk_together`` the end of that block waits.

        Args:
            run: The run that it is about; empty for all of them.
            round_number: Its round; 0 for none.
            what: A decision, or what is about to leave.
            body: What leaves; only its length and digest are written.
            detail: What else is to be known: codes, digests, the site's own words.

        Raises:
            StorageError: If it cannot be written; then the body must not leave.
        """
        entry: dict[str, object] = {"run": run, "round": round_number, "what": what}
        if body is not None:
            entry |= {"bytes": len(body), "sha256": digest_of(body)}
        if detail:
            entry["detail"] = dict(detail)
        with self._lock:  # a refusal does not wait for a training to end
            self._append(entry)

    def head(self) -> Anchor | None:
        """Return number and digest of the last line; ``None`` before there is one."""
        with self._lock:
            return Anchor(seq=self._count, sha256=self._last) if self._count else None

    def _append(self, entry: Mapping[str, object]) -> None:
        written = _written.get()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with FileIO(descriptor, "w") as file:  # closing it gives up the lock
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self._size != os.fstat(descriptor).st_size:  # another process wrote in between
                    self._count, self._size, self._last = self._end()
                line = self._line(entry)
                write_whole(file, line)
                if written is None:
                    os.fsync(descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if written is not None:
            written[self.path] = None
        self._count += 1
        self._size += len(line)
        self._last = hashlib.sha256(line).hexdigest()

    def _line(self, entry: Mapping[str, object]) -> bytes:
        chained = {
            "seq": self._count + 1,
            "utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **entry,
            "prev_sha256": self._last,
        }
        return (json.dumps(chained, sort_keys=True, separators=(",", ":")) + "\n").encode()

    def _end(self) -> tuple[int, int, str]:
        """Return the number of lines, the bytes and the last digest of the log as it is."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self.path, sum(len(line) for line in lines[:-1]))
            lines.pop()
        last = hashlib.sha256(lines[-1]).hexdigest() if lines else FIRST
        return len(lines), sum(len(line) for line in lines), last


def _sync(paths: list[Path]) -> None:
    """Wait until files are on the disk, several at a time."""
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(paths)))) as threads:
        waits = [threads.submit(_sync_one, path) for path in paths]
    for wait in waits:
        wait.result()


def _sync_one(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be written: {error.strerror}")
