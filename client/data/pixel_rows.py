"""Rows of pixels while a site is read: filled one by one, in a new cache file or in memory."""

import logging
import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from client.data.images import Picture
from client.data.pixel_cache import FileRows, Pixels, Shape
from shared.errors import StorageError
from shared.files import storage_errors
from shared.page.numbers import size

log = logging.getLogger(__name__)
_told: set[Path | None] = set()  # folders about which the log has said something


class _Rows(Protocol):
    """Rows of pixels; those that were never written are zeros."""

    shape: Shape

    def write(self, row: int, value: Pixels) -> None:
        """Set a row, (height, width, channels); one channel becomes three where there are three."""

    def read(self, row: int) -> Pixels:
        """Return a row that was set."""

    def discard(self) -> None:
        """Leave nothing behind."""


class _MemoryRows:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.array: Pixels = np.zeros(shape, np.uint8)

    def write(self, row: int, value: Pixels) -> None:
        self.array[row] = value

    def read(self, row: int) -> Pixels:
        value: Pixels = self.array[row]
        return value

    def discard(self) -> None:
        pass


class PixelRows:
    """Rows of pixels while they are filled: in a new cache file, or in memory.

    If the file cannot be written, what it has goes to memory, the log says so once, and filling
    goes on. A context: what is not finished when it ends is removed.

    Args:
        count: How many rows; those that are never filled are zeros.
        folder: The cache folder; ``None`` for memory.
        made_by: See ``fingerprint``.
    """

    def __init__(self, count: int, folder: Path | None, made_by: str) -> None:
        self.count = count
        self._folder = folder
        self._made_by = made_by
        self._rows: _Rows | None = None
        self._pictures: dict[int, Picture] = {}
        self._grey: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows is not None:
            self._rows.discard()

    def put(self, row: int, pixels: Pixels, picture: Picture) -> None:
        """Fill a row.

        Args:
            row: Its number.
            pixels: (height, width) or (height, width, 3), of the same size for all; a grey
                picture beside coloured ones gets three equal channels.
            picture: What is known of it.

        Raises:
            StorageError: If the rows fit neither on the disk nor into memory.
        """
        coloured = pixels.ndim == 3
        value = pixels if coloured else pixels[:, :, np.newaxis]
        height, width, channels = value.shape
        rows = self._rows
        if rows is None or channels > rows.shape[3]:
            rows = self._take((self.count, height, width, channels))
        try:
            with self._explained(rows.shape):
                rows.write(row, value)
        except StorageError as error:
            self._give_up_file(error, rows.shape)
            self._take(rows.shape).write(row, value)
        self._pictures[row] = picture
        if not coloured:
            self._grey.add(picture.digest)

    def finish(self) -> Pixels:
        """Return all rows, (count, height, width, channels); in a file, that is the cache now.

        Raises:
            StorageError: If the rows fit neither on the disk nor into memory.
        """
        if isinstance(self._rows, FileRows):
            try:
                with self._explained(self._rows.shape):
                    return self._rows.finish(self._index())
            except StorageError as error:
                self._give_up_file(error, self._rows.shape)
                self._take(self._rows.shape)
        if not isinstance(self._rows, _MemoryRows):
            raise ValueError("no row was filled, so their shape is not known")  # noqa: TRY004
        return self._rows.array

    def _take(self, shape: Shape) -> _Rows:
        """Go on with rows of this shape, in a file if there can be one, with what is filled."""
        if self._folder is not None:
            try:
                with self._explained(shape):
                    return self._move(FileRows(self._folder, shape))
            except StorageError as error:
                self._give_up_file(error, shape)
        _check_memory(shape)
        with self._explained(shape):
            return self._move(_MemoryRows(shape))

    def _move(self, rows: _Rows) -> _Rows:
        before = self._rows
        if before is not None:
            try:
                for row in self._pictures:
                    rows.write(row, before.read(row))
            except BaseException:
                rows.discard()
                raise
            before.discard()
        self._rows = rows
        return rows

    def _give_up_file(self, error: StorageError, shape: Shape) -> None:
        """Say that memory has to do, unless that is too small as well."""
        if math.prod(shape) > _memory():
            raise StorageError(
                f"{error}; they do not fit into this machine's memory of {size(_memory())} either; "
                "make room there, or give the site a folder on a larger disk"
            ) from None
        if self._folder not in _told:
            log.warning("%s; they are kept in memory, and every start prepares them anew", error)
            _told.add(self._folder)
        self._folder = None

    def _explained(self, shape: Shape) -> AbstractContextManager[None]:
        return storage_errors(
            f"{self._folder}: the site's prepared pictures take {size(math.prod(shape))} and "
            "could not be written there"
        )

    def _index(self) -> dict[str, object]:
        known = {picture.digest: picture for picture in self._pictures.values()}
        number = {digest: n for n, digest in enumerate(known)}
        held = {row: number[picture.digest] for row, picture in self._pictures.items()}
        return {
            "made_by": self._made_by,
            "pictures": [tuple(vars(picture).values()) for picture in known.values()],
            "layout": [held.get(row) for row in range(self.count)],
            "grey": [number[digest] for digest in sorted(self._grey)],
        }


def _memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(shape: Shape) -> None:
    """Raise if rows cannot be in memory; the system would promise it, and end the process later.

    Raises:
        StorageError: If so.
    """
    if math.prod(shape) > _memory():
        raise StorageError(
            f"the site's prepared pictures take {size(math.prod(shape))}, and this machine has "
            f"{size(_memory())} of memory; a sealed site keeps them on an encrypted disk with "
            'pictures = "disk" in [sealing]'
        )
