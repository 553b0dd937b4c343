"""A site's pictures as the encoder sees them: prepared once, then mapped into memory.

The site's cache folder holds one file, readable by its owner only::

    rows      uint8, one row of pixels per record, in the order of the splits
    index     JSON: how the rows were made, their shape and digest, and whose picture is in which
    trailer   sha256 of the index, its length, and a mark

A picture is known by the sha256 of its file's content, so a file that changed is not. A cache
that is damaged, cut off, or was made in another way counts as not there. It is only ever
replaced as a whole, so a process that has mapped one keeps the one it has.
"""

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.images import Picture
from client.state import private_folder
from shared.files import TEMPORARY

FILE: Final = "pixels"
"""Name of the file in a cache folder."""

_MARK = b"consilia pixels 1\n"  # the number changes with the layout of the file
_TRAILER = 32 + 8 + len(_MARK)
_CHUNK = 2**20
# What turns a file into 8-bit values: another version of any may give others.
_CODE = ("images.py", "pixels.py", "dicom.py", "dicom_rules.py")
_LIBRARIES = ("Pillow", "pydicom", "numpy")

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int, int]


def fingerprint(preprocessing: str, accept: Sequence[str]) -> str:
    """Return the digest of everything but the files that a cache's content depends on.

    Args:
        preprocessing: Stands for how a decoded picture is brought to the encoder's size.
        accept: The DICOM rules that the site's policy overrides.
    """
    return _sha256(repr((preprocessing, sorted(accept), _decoding())).encode())


@functools.cache
def _decoding() -> str:
    """Digest of the code that decodes: it cannot be forgotten, as a number to raise could."""
    here = Path(__file__)
    code = b"".join(here.with_name(name).read_bytes() for name in _CODE)
    return _sha256(code + repr([version(name) for name in _LIBRARIES]).encode())


@dataclass(frozen=True)
class KeptPixels:
    """A cache that was found whole.

    Attributes:
        pictures: What the decoder and the rules found out, by digest of the file.
        layout: Digest of the picture in each row, empty for a record without one.
        array: (n, height, width, channels), mapped read-only.
        grey: Digests of the pictures that have one channel, whatever the array has.
    """

    pictures: Mapping[str, Picture]
    layout: tuple[str, ...]
    array: Pixels
    grey: frozenset[str]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {digest: row for row, digest in enumerate(self.layout)}

    def pixels(self, digest: str) -> Pixels:
        """Return a picture as it was prepared: (height, width), or with three channels."""
        found: Pixels = self.array[self._rows[digest]]
        return found[:, :, 0] if digest in self.grey else found


def open_cache(folder: Path, made_by: str) -> KeptPixels | None:
    """Return what a folder holds, if it is whole and was made in this way.

    One that is of no use is removed, because the next may need its space.
    """
    path = folder / FILE
    try:
        with FileIO(path) as file:
            kept = _read(file, made_by)
    except (OSError, ValueError):
        kept = None
    if kept is None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return kept


def _read(file: FileIO, made_by: str) -> KeptPixels | None:
    end = file.seek(0, os.SEEK_END)
    if end < _TRAILER:
        return None
    file.seek(end - _TRAILER)
    trailer = file.read(_TRAILER)
    length = int.from_bytes(trailer[32:40], "big")
    rows_end = end - _TRAILER - length
    if trailer[40:] != _MARK or rows_end < 0:
        return None
    file.seek(rows_end)
    index = file.read(length)
    if hashlib.sha256(index).digest() != trailer[:32]:
        return None
    tree = json.loads(index)  # of our own making, as the digest says
    if tree["made_by"] != made_by or _sha256_of(file, rows_end) != tree["rows_sha256"]:
        return None
    pictures = [Picture(*values) for values in tree["pictures"]]
    return KeptPixels(
        pictures={picture.digest: picture for picture in pictures},
        layout=tuple("" if n is None else pictures[n].digest for n in tree["layout"]),
        array=_mapped(file, tree["shape"]),
        grey=frozenset(pictures[n].digest for n in tree["grey"]),
    )


def _mapped(file: FileIO, shape: Sequence[int]) -> Pixels:
    array: Pixels = np.memmap(file, np.uint8, "r", 0, tuple(shape))
    return array


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(file: FileIO, count: int) -> str:
    """Digest of the first bytes of a file, read in pieces so that none of it stays in memory."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    file.seek(0)
    while count:
        got = file.readinto(buffer[: min(count, _CHUNK)])
        if not got:
            return ""
        digest.update(buffer[:got])
        count -= got
    return digest.hexdigest()


class FileRows:
    """Rows in a file that nobody else sees until it is finished.

    They are written, not stored through a map: where the disk is full, a write is an error
    that can be dealt with, a map the end of the process.

    Args:
        folder: The cache folder; made if it is missing.
        shape: Of all rows; those that are never written are zeros.

    Raises:
        OSError: From any method, if the file cannot be made or written.
        StorageError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.shape = shape
        self._row = math.prod(shape[1:])
        self._end = shape[0] * self._row
        self._target = folder / FILE
        private_folder(folder)
        _remove_abandoned(folder)
        # Known now rather than after an hour of decoding, and without filling the disk.
        if shutil.disk_usage(folder).free < self._end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file, self._path = _locked_file(folder)
        self._file.truncate(self._end)

    def write(self, row: int, value: Pixels) -> None:
        """Set a row, (height, width, channels)."""
        if value.shape != self.shape[1:]:
            value = np.broadcast_to(value, self.shape[1:])
        self._write_at(row * self._row, value.tobytes())

    def read(self, row: int) -> Pixels:
        """Return a row."""
        value = np.empty(self.shape[1:], np.uint8)
        self._file.seek(row * self._row)
        if self._file.readinto(value.data) != self._row:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return value

    def finish(self, index: Mapping[str, object]) -> Pixels:
        """Put the index behind the rows and the file in its place, and map it."""
        tree = {**index, "shape": self.shape, "rows_sha256": _sha256_of(self._file, self._end)}
        content = json.dumps(tree, separators=(",", ":")).encode()
        trailer = hashlib.sha256(content).digest() + len(content).to_bytes(8, "big") + _MARK
        # Nothing waits for the disk: what a power cut leaves would not have these digests.
        self._write_at(self._end, content + trailer)
        array = _mapped(self._file, self.shape)
        self._path.replace(self._target)
        self._file.close()
        return array

    def discard(self) -> None:
        """Leave nothing behind, unless the file is in its place already."""
        self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write_at(self, place: int, content: bytes) -> None:
        self._file.seek(place)
        rest = memoryview(content)
        while rest:  # a disk that is nearly full takes less than it was given
            rest = rest[self._file.write(rest) :]


def _locked_file(folder: Path) -> tuple[FileIO, Path]:
    """Make a file of our own; its lock, which ends with the process, says that it is in use."""
    while True:
        descriptor, name = tempfile.mkstemp(TEMPORARY, f"{FILE}-", folder)  # its owner's only
        file = FileIO(descriptor, "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return file, Path(name)
        file.close()  # another process took it for abandoned before it was locked


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left; a file that is being filled is locked."""
    for path in folder.glob(f"{FILE}-*{TEMPORARY}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
