"""Secrets on disk: files that only their owner can read, or they are not used."""

import stat
from pathlib import Path

from shared.errors import IdentityError
from shared.files import write_atomic

_LARGEST = 64 * 1024
"""Bytes; no key is nearly so long."""


def read_private(path: Path, what: str) -> bytes:
    """Return a secret.

    Args:
        path: Its file.
        what: What it should be, for the message, such as ``the site's signing key``.

    Raises:
        IdentityError: If it is not there, too large, or others than its owner can open it.
    """
    try:
        status = path.stat()
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise IdentityError(
                f"{path}: others can open {what} (mode {mode:04o}, expected 0600); run "
                f"`chmod 600 {path}`, and make new keys if somebody may have read it"
            )
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise IdentityError(
                f"{path}: expected {what}, a file of at most {_LARGEST // 1024} KiB; put back the "
                "file that was there"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise IdentityError(
            f"{path}: {what} is not there; put it back, or make new keys with `init`"
        ) from None
    except OSError as error:
        raise IdentityError(
            f"{path}: {what} cannot be read ({error.strerror}); it must belong to the user who "
            "runs this command"
        ) from None


def write_secret(path: Path, content: bytes) -> None:
    """Write a secret that is not there yet, readable by its owner only.

    Raises:
        StorageError: If it cannot be written.
    """
    write_atomic(path, content, mode=0o600)  # half a secret would look like a damaged one
