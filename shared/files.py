"""Writing so that a reader sees a file or folder whole, or not at all, and on the disk."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from shared.errors import ConfigError, StorageError

TEMPORARY = ".unfinished"
"""How the name of a file or folder ends while it is being written."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: bytes, mode: int = 0o644, *, wait: bool = True) -> None:
    """Write a file in one step: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: The file; its folder is created if missing.
        content: All of it.
        mode: Permissions; 0o600 for what is private.
        wait: Whether it must survive a power cut; if not, nothing waits for the disk.

    Raises:
        StorageError: If it could not be written; a file of that name is as it was.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with storage_errors(f"{path}: could not be written; what was there before is intact"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_new(temporary, content, mode, wait=wait)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if wait:
            sync_directory(path.parent)


def write_new(path: Path, content: bytes, mode: int = 0o644, *, wait: bool = True) -> None:
    """Write a file that no one reads yet, and wait until it is on the disk."""
    with path.open("wb") as file:
        os.fchmod(file.fileno(), mode)  # before there is any content to read
        file.write(content)
        file.flush()
        if wait:
            os.fsync(file.fileno())


def write_whole(file: FileIO, content: bytes) -> None:
    """Write to a file without a buffer, all of it.

    Raises:
        OSError: If only a part could be written, as on a full disk.
    """
    if file.write(content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` if the block succeeds.

    Raises:
        StorageError: If it could not be written; an older folder is as it was.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with storage_errors(f"{path}: could not be written; what was there before is intact"):
        shutil.rmtree(temporary, ignore_errors=True)  # of an earlier crash
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(path.parent)


@contextmanager
def held(folder: Path, refusal: str, name: str = "lock") -> Iterator[None]:
    """Hold a private folder for this process; it is made if missing.

    Args:
        folder: The folder.
        refusal: What to say if another process holds it.
        name: Of the lock's file in it.

    Raises:
        ConfigError: If another process holds it.
        StorageError: If it cannot be made.
    """
    with storage_errors(f"{folder}: cannot be made"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / name).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: {refusal}") from None
        yield


def is_held(folder: Path, name: str = "lock") -> bool:
    """Return whether a process holds a folder; see ``held``."""
    try:
        with (folder / name).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Wait until no other process is in such a block, and keep others out of it.

    Args:
        lock: A file for nothing else; its folder is there, and it is made if missing.

    Raises:
        StorageError: If it cannot be made.
    """
    with storage_errors(f"{lock}: cannot be made"):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
