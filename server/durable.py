"""Files that are whole or not there, and on the disk when a function returns."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import StorageError

TEMPORARY = ".unfinished"
"""How the name of a file ends while it is being written."""


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: temporary file, fsync, rename, fsync of the directory.

    Raises:
        StorageError: If it could not be written; a file of that name is as it was.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with storage_errors(f"{path}: could not be written; what was there before is intact"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_new(temporary, content)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that no one reads yet, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(message: str) -> Iterator[None]:
    """Turn errors of the operating system into ``StorageError`` with a cause and a message."""
    try:
        yield
    except OSError as error:
        cause = "no space left on the disk" if error.errno in _FULL else error.strerror or "error"
        raise StorageError(f"{message} ({cause})") from error


_FULL = (errno.ENOSPC, errno.EDQUOT)
