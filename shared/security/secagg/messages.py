"""The messages of a secure sum in bytes: one form for one content, of a length known beforehand.

A message is ``b"CSUM" + version byte + kind byte + digest of the session (32 bytes)`` and then
its fields, big endian and of fixed length. Sites stand by their place in the session (2 bytes).
Records by site are in order of their places, each once, after their number (2 bytes). A vector is
little endian, as everywhere. Whatever is not exactly so is refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import SecureSumError
from shared.security.canonical import canonical
from shared.security.secagg.framing import Kind, Reader, begin, number, records
from shared.security.secagg.keys import KEY_BYTES, SEALED_BYTES
from shared.security.secagg.session import Session
from shared.security.secagg.shamir import SHARE_BYTES

_SIGNATURE: Final = 64
_ADVERTISED: Final = 3 * KEY_BYTES + _SIGNATURE
_COUNT: Final = 4


@dataclass(frozen=True)
class Advertisement:
    """A site's fresh public keys, signed with its long-term key.

    Attributes:
        site: Its place.
        channel_key: For shares that are sealed for it.
        mask_key: For the masks between it and others.
        commitment: To the seed of its own mask.
        signature: Over all of them and the session.
    """

    site: int
    channel_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    @staticmethod
    def text(session: Session, site: int, keys: bytes) -> bytes:
        """Return what a site signs of its keys (channel key, mask key, commitment)."""
        said = {"session": session.digest.hex(), "site": site, "keys": keys.hex()}
        return canonical("secure-sum advertisement 1", said)

    @property
    def keys(self) -> bytes:
        """Channel key, mask key and commitment, 96 bytes."""
        return self.channel_key + self.mask_key + self.commitment

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return begin(Kind.ADVERTISEMENT, session) + number(self.site) + self.record

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message; its signature is for the caller to check.

        Raises:
            SecureSumError: ``secure-message``.
        """
        reader = Reader(content, Kind.ADVERTISEMENT, session)
        found = cls.of_record(reader.place(), reader.take(_ADVERTISED))
        reader.end()
        return found

    @classmethod
    def of_record(cls, site: int, record: bytes) -> Self:
        """Return the advertisement in a record."""
        ends = [0, KEY_BYTES, 2 * KEY_BYTES, 3 * KEY_BYTES, _ADVERTISED]
        parts = [record[start:end] for start, end in pairwise(ends)]
        return cls(site, *parts)

    @property
    def record(self) -> bytes:
        """Keys and signature, 160 bytes."""
        return self.keys + self.signature


@dataclass(frozen=True)
class Keys:
    """All advertisements of a session, the same for every site."""

    advertisements: Mapping[int, Advertisement]

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        found = {place: each.record for place, each in self.advertisements.items()}
        return begin(Kind.KEYS, session) + records(found)

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message; as ``Advertisement.decode``."""
        reader = Reader(content, Kind.KEYS, session)
        found = reader.records(_ADVERTISED)
        reader.end()
        return cls({place: Advertisement.of_record(place, r) for place, r in found.items()})

    def view(self, session: Session) -> bytes:
        """Return the digest of the session and all its keys, 32 bytes."""
        return hashlib.sha256(self.encode(session)).digest()


@dataclass(frozen=True)
class Sealed:
    """A site's shares for the others, each sealed for its receiver.

    Attributes:
        site: Place of the sender.
        shares: By the receiver's place.
    """

    kind: ClassVar[Kind] = Kind.SEALED

    site: int
    shares: Mapping[int, bytes]

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return begin(self.kind, session) + number(self.site) + records(self.shares)

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message.

        Raises:
            SecureSumError: ``secure-message``.
        """
        reader = Reader(content, cls.kind, session)
        found = cls(reader.place(), reader.records(SEALED_BYTES))
        reader.end()
        return found


@dataclass(frozen=True)
class Delivery(Sealed):
    """What the others sealed for a site.

    Attributes:
        site: Place of the receiver.
        shares: By the sender's place.
    """

    kind: ClassVar[Kind] = Kind.DELIVERY


@dataclass(frozen=True)
class Masked:
    """A site's masked vector.

    Attributes:
        site: Its place.
        vector: (entries,) uint32.
    """

    site: int
    vector: NDArray[np.uint32]

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        before = begin(Kind.MASKED, session) + number(self.site)
        count = self.vector.size.to_bytes(_COUNT, "big")
        return b"".join([before, count, self.vector.astype("<u4", copy=False).data])

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message; the vector is a view of it that cannot be written.

        Raises:
            SecureSumError: ``secure-message``, also for another length than the session's.
        """
        reader = Reader(content, Kind.MASKED, session)
        site, count = reader.place(), int.from_bytes(reader.take(_COUNT), "big")
        if count != session.entries or reader.left != 4 * count:
            raise SecureSumError(
                "secure-message",
                f"masked vector: expected {session.entries} entries, got {reader.left} bytes",
            )
        vector = np.frombuffer(content, "<u4", count, reader.at)
        return cls(site, vector.astype(np.uint32, copy=False))


@dataclass(frozen=True)
class Survivors:
    """The sites whose masked vectors arrived, by place."""

    sites: tuple[int, ...]

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return begin(Kind.SURVIVORS, session) + records(dict.fromkeys(self.sites, b""))

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message.

        Raises:
            SecureSumError: ``secure-message``.
        """
        reader = Reader(content, Kind.SURVIVORS, session)
        found = cls(tuple(reader.records(0)))
        reader.end()
        return found

    def text(self, session: Session, view: bytes, shared: tuple[int, ...]) -> bytes:
        """Return what a site signs: the sum that will be unmasked, and no other.

        Args:
            session: The session.
            view: Digest of the session and its keys.
            shared: Places of the sites that sent shares, ascending.
        """
        said = {
            "session": session.digest.hex(),
            "view": view.hex(),
            "shared": list(shared),
            "survivors": list(self.sites),
        }
        return canonical("secure-sum survivors 1", said)


@dataclass(frozen=True)
class Agreement:
    """A site's signature on the survivors.

    Attributes:
        site: Its place.
        signature: Of ``Survivors.text``.
    """

    site: int
    signature: bytes

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return begin(Kind.AGREEMENT, session) + number(self.site) + self.signature

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message.

        Raises:
            SecureSumError: ``secure-message``.
        """
        reader = Reader(content, Kind.AGREEMENT, session)
        found = cls(reader.place(), reader.take(_SIGNATURE))
        reader.end()
        return found


@dataclass(frozen=True)
class Agreements:
    """The signatures of all sites that agreed, by place."""

    signatures: Mapping[int, bytes]

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return begin(Kind.AGREEMENTS, session) + records(self.signatures)

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message.

        Raises:
            SecureSumError: ``secure-message``.
        """
        reader = Reader(content, Kind.AGREEMENTS, session)
        found = cls(reader.records(_SIGNATURE))
        reader.end()
        return found


@dataclass(frozen=True)
class Revealed:
    """The shares that a site gives out: one of every other site's two.

    Attributes:
        site: Its place.
        own_masks: Shares of the own masks of sites whose vectors arrived, by place.
        mask_keys: Shares of the keys behind the pairwise masks of the others, by place.
    """

    site: int
    own_masks: Mapping[int, bytes] = field(repr=False)
    mask_keys: Mapping[int, bytes] = field(repr=False)

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        before = begin(Kind.REVEALED, session) + number(self.site)
        return before + records(self.own_masks) + records(self.mask_keys)

    @classmethod
    def decode(cls, content: bytes, session: Session) -> Self:
        """Read the message.

        Raises:
            SecureSumError: ``secure-message``, also if it holds both shares of a site.
        """
        reader = Reader(content, Kind.REVEALED, session)
        site = reader.place()
        found = cls(site, reader.records(SHARE_BYTES), reader.records(SHARE_BYTES))
        reader.end()
        if found.own_masks.keys() & found.mask_keys.keys():
            raise SecureSumError("secure-message", "both shares of one site")
        return found
