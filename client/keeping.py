"""How a site keeps what is private on its disk: in the clear, or sealed (``client.vault``).

In the clear a file is as private as its mode: whoever has the disk has the file.
"""

import os
from io import FileIO
from pathlib import Path
from typing import Final, Protocol

from shared.errors import IdentityError
from shared.files import storage_errors, write_atomic, write_whole
from shared.security.sealing import MARK_BYTES, is_sealed


class Keeping(Protocol):
    """A way to keep private files. Files of a run that are sealed share the run's data key."""

    def write(self, path: Path, content: bytes, run: str, *, wait: bool = True) -> None:
        """Replace a file as a whole, readable by its owner only.

        Args:
            path: The file.
            content: All of it.
            run: Whose file it is.
            wait: Whether it must survive a power cut; if not, nothing waits for the disk.

        Raises:
            StorageError: If it cannot be written; an older file stays as it was.
        """
        ...

    def overwrite(self, path: Path, head: bytes, body: bytes, run: str) -> None:
        """Replace a file that has a digest in it; a kill may leave one that is of no use.

        Args:
            path: The file.
            head: What it begins with.
            body: The rest of it.
            run: Whose file it is.

        Raises:
            StorageError: If it cannot be written.
        """
        ...

    def read(self, path: Path, begins: bytes = b"") -> bytes:
        """Return what a file holds, in the clear.

        Args:
            path: The file.
            begins: How it must begin, or else the rest is not needed and nothing is returned.

        Raises:
            OSError: If it is not there or cannot be read.
            IdentityError: If it cannot be opened; says what to do.
        """
        ...


class _InTheClear:
    """Files as they are, with mode 0600."""

    def write(self, path: Path, content: bytes, run: str, *, wait: bool = True) -> None:  # noqa: ARG002
        """Replace a file as a whole, readable by its owner only."""
        write_atomic(path, content, mode=0o600, wait=wait)

    def overwrite(self, path: Path, head: bytes, body: bytes, run: str) -> None:  # noqa: ARG002
        """Write over a file, which is quicker than to replace it."""
        with (
            storage_errors(f"{path}: could not be written"),
            FileIO(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file,
        ):
            write_whole(file, head)
            write_whole(file, body)
            if os.fstat(file.fileno()).st_size != file.tell():
                file.truncate()

    def read(self, path: Path, begins: bytes = b"") -> bytes:
        """Return what a file holds."""
        with path.open("rb") as file:
            head = file.read(max(len(begins), MARK_BYTES))
            if is_sealed(head):
                raise IdentityError(
                    f"{path}: is sealed; expected the site's key: give site.toml the table "
                    "[sealing] that it had when the file was written"
                )
            return head + file.read() if head.startswith(begins) else b""


IN_THE_CLEAR: Final[Keeping] = _InTheClear()
"""What simulated sites do, and a site without the table ``[sealing]``."""
