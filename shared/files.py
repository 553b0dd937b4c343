"""Writing so that a reader sees a file or folder whole, or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.errors import StorageError


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file: temporary file, fsync, rename, fsync of the folder.

    Args:
        path: The file; its folder is created if missing.
        content: All of it.
        mode: Permissions; 0o600 for what is private.

    Raises:
        StorageError: If the disk is full or cannot be written; an older file stays as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` if the block succeeds.

    Raises:
        StorageError: If the disk is full or cannot be written; an older folder stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Say which write failed and what to do."""
    if error.errno == errno.ENOSPC:
        return StorageError(
            f"{path}: the disk is full; what was committed before is intact; free some space "
            "and go on with: consilia simulate --resume RUN"
        )
    return StorageError(f"{path}: cannot be written: {error.strerror or error}")
