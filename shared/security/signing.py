"""Ed25519 keys (RFC 8032): who signed, and fingerprints that people can read to one another."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shared.errors import IdentityError
from shared.security.private_files import read_private

_FINGERPRINT_BYTES = 20
"""Nobody finds other keys with the same 160 bits; 32 letters can be read over the phone."""
_GROUP = 4


@dataclass(frozen=True)
class SigningKey:
    """A private Ed25519 key; it shows only its public part."""

    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return a new key, from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, what: str) -> Self:
        """Read a key.

        Args:
            path: Its file (PEM, PKCS #8).
            what: Whose it is, for the message, such as ``the site's signing key``.

        Raises:
            IdentityError: If it is missing, damaged, of another sort, or others can read it.
        """
        try:
            private = load_pem_private_key(read_private(path, what), password=None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise IdentityError(
                f"{path}: expected {what}, an Ed25519 key in PEM; it is damaged, cut short or of "
                "another sort; put back the file that was there"
            )
        return cls(private)

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self.private.public_key().public_bytes_raw().hex()

    def pem(self) -> bytes:
        """Return the private key for its file."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """Return the signature (64 bytes) of a message."""
        return self.private.sign(message)


def verified(public: str, message: bytes, signature: bytes) -> bool:
    """Return whether a signature of a message was made with the key that belongs to ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(message: bytes) -> str:
    """Return eight groups of four letters and digits that stand for a message."""
    digest = hashlib.sha256(message).digest()[:_FINGERPRINT_BYTES]
    letters = base64.b32encode(digest).decode()
    groups = [letters[start : start + _GROUP] for start in range(0, len(letters), _GROUP)]
    return "-".join(groups)


def same_fingerprint(one: str, other: str) -> bool:
    """Compare fingerprints as people write them: in either case, with or without dashes."""
    return _letters(one) == _letters(other)


def _letters(shown: str) -> str:
    return "".join(shown.upper().replace("-", " ").split())
