"""How a message of a secure sum begins, and how its fields are read: exactly, or not at all."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from shared.errors import SecureSumError
from shared.security.secagg.session import Session

_MAGIC: Final = b"CSUM" + bytes([1])
_PLACE: Final = 2


class Kind(IntEnum):
    """What a message is."""

    ADVERTISEMENT = 1
    KEYS = 2
    SEALED = 3
    DELIVERY = 4
    MASKED = 5
    SURVIVORS = 6
    AGREEMENT = 7
    AGREEMENTS = 8
    REVEALED = 9


def begin(kind: Kind, session: Session) -> bytes:
    """Return what a message begins with."""
    return _MAGIC + bytes([kind]) + session.digest


def number(place: int) -> bytes:
    """Return the place of a site, or a count of sites, in bytes."""
    return place.to_bytes(_PLACE, "big")


def records(by_place: Mapping[int, bytes]) -> bytes:
    """Return records by site: their count, and each after its place, in order."""
    ordered = [number(place) + record for place, record in sorted(by_place.items())]
    return b"".join([number(len(ordered)), *ordered])


class Reader:
    """Reads a message from its beginning on.

    Args:
        content: The message.
        kind: What it must be.
        session: Whose it must be.

    Raises:
        SecureSumError: ``secure-message``, and so do all methods.
    """

    def __init__(self, content: bytes, kind: Kind, session: Session) -> None:
        start = begin(kind, session)
        said = len(_MAGIC) + 1
        if content[:said] != start[:said]:
            raise SecureSumError("secure-message", f"expected the message {kind.name.lower()}")
        if not content.startswith(start):
            raise SecureSumError("secure-message", "the message belongs to another session")
        self._content, self._sites = content, len(session.participants)
        self.at = len(start)

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._content) - self.at

    def take(self, size: int) -> bytes:
        """Read so many bytes."""
        if size > self.left:
            raise SecureSumError("secure-message", "the message is cut short")
        self.at += size
        return self._content[self.at - size : self.at]

    def place(self) -> int:
        """Read the place of a site."""
        place = int.from_bytes(self.take(_PLACE), "big")
        if place >= self._sites:
            raise SecureSumError("secure-message", "a site that does not take part")
        return place

    def records(self, size: int) -> dict[int, bytes]:
        """Read records of a given size by place."""
        count = int.from_bytes(self.take(_PLACE), "big")
        if count > self._sites:
            raise SecureSumError("secure-message", "more records than sites")
        found: dict[int, bytes] = {}
        latest = -1
        for _ in range(count):
            place = self.place()
            if place <= latest:
                raise SecureSumError("secure-message", "records out of order, or one twice")
            found[place] = self.take(size)
            latest = place
        return found

    def end(self) -> None:
        """Refuse what comes after the last field."""
        if self.left:
            raise SecureSumError("secure-message", "the message goes on after its end")
