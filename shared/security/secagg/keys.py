"""Keys of one session: agreement (X25519, RFC 7748), derivation (HKDF), sealed shares.

Every derivation names its purpose, the whole view of the session (``view``: digest of the session
and of all advertised keys) and whom it is between. Nothing is shortened on the way: a mask hangs
on 32 bytes.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shared.errors import SecureSumError
from shared.security.derive import hkdf_sha256
from shared.security.secagg.shamir import SHARE_BYTES, Randomness

KEY_BYTES: Final = 32
SEALED_BYTES: Final = 2 * SHARE_BYTES + 16
"""Two shares and the tag."""

_NONCE: Final = bytes(12)
"""Every key seals one message only."""


@dataclass(frozen=True)
class KeyPair:
    """A pair of X25519 keys; it shows only its public part.

    Attributes:
        public: 32 bytes.
        private: 32 bytes.
    """

    public: bytes
    private: bytes = field(repr=False)

    @classmethod
    def new(cls, randomness: Randomness) -> Self:
        """Return a new pair."""
        return cls.of(randomness(KEY_BYTES))

    @classmethod
    def of(cls, private: bytes) -> Self:
        """Return the pair of a private key."""
        key = X25519PrivateKey.from_private_bytes(private)
        return cls(key.public_key().public_bytes_raw(), private)

    def secret_with(self, public: bytes) -> bytes:
        """Return the secret that only the owners of the two keys can work out.

        Raises:
            SecureSumError: ``secure-keys`` if the other key makes every secret the same.
        """
        try:
            return self._own.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise SecureSumError("secure-keys", "a public key of low order") from None

    @cached_property
    def _own(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.private)


@dataclass(frozen=True)
class Shares:
    """One site's shares of another site's two secrets.

    Attributes:
        own_mask: Of the seed of the other's own mask.
        mask_key: Of the private key behind the other's pairwise masks.
    """

    own_mask: bytes = field(repr=False)
    mask_key: bytes = field(repr=False)


def commitment(seed: bytes, session: bytes, place: int) -> bytes:
    """Return what a site publishes of the seed of its own mask; it says nothing of the mask."""
    return hkdf_sha256(seed, _purpose("commitment", session, place))


def own_mask_key(seed: bytes, view: bytes, place: int) -> bytes:
    """Return the key of a site's own mask."""
    return hkdf_sha256(seed, _purpose("own mask", view, place))


def pair_mask_key(secret: bytes, place: int, other: int, view: bytes) -> bytes:
    """Return the key of the mask between two sites, the same at both.

    Args:
        secret: What both can work out (``KeyPair.secret_with``).
        place: Place of one site.
        other: Place of the other.
        view: Digest of the session and its keys.
    """
    return hkdf_sha256(secret, _purpose("pair mask", view, *sorted((place, other))))


@dataclass(frozen=True)
class Channel:
    """The sealed way from one site to another; each way has its own key, for one message.

    Attributes:
        sender: Place of the site that seals.
        receiver: Place of the site that opens.
        session: Digest of the session.
        view: Digest of the session and its keys.
    """

    sender: int
    receiver: int
    session: bytes
    view: bytes

    def seal(self, own: KeyPair, public: bytes, shares: Shares) -> bytes:
        """Seal shares for the receiver.

        Args:
            own: The sender's pair.
            public: The receiver's key.
            shares: What is sealed.
        """
        said = shares.own_mask + shares.mask_key
        return self._cipher(own, public).encrypt(_NONCE, said, self._bound)

    def open(self, own: KeyPair, public: bytes, sealed: bytes) -> Shares:
        """Open what the sender sealed.

        Args:
            own: The receiver's pair.
            public: The sender's key.
            sealed: What came.

        Raises:
            SecureSumError: ``secure-share`` if anything about it is not as it was sealed.
        """
        try:
            said = self._cipher(own, public).decrypt(_NONCE, sealed, self._bound)
        except InvalidTag:
            raise SecureSumError(
                "secure-share", f"the shares of site {self.sender} cannot be opened"
            ) from None
        return Shares(said[:SHARE_BYTES], said[SHARE_BYTES:])

    def _cipher(self, own: KeyPair, public: bytes) -> ChaCha20Poly1305:
        purpose = _purpose("shares", self.view, self.sender, self.receiver)
        return ChaCha20Poly1305(hkdf_sha256(own.secret_with(public), purpose))

    @property
    def _bound(self) -> bytes:
        return self.session + _purpose("shares", self.view, self.sender, self.receiver)


def _purpose(name: str, bound: bytes, *places: int) -> bytes:
    """Return what a derivation is for; the name's length stands first, so none begins another."""
    label = f"consilia secure-sum 1 {name}".encode()
    numbers = b"".join(place.to_bytes(2, "big") for place in places)
    return bytes([len(label)]) + label + bound + numbers
