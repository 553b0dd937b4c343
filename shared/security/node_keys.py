"""Keys by which Flower knows a site's node: ECDSA on P-384, in OpenSSH's format.

Flower signs only the time with it. What a site says is signed with another key
(``shared.security.signing``).
"""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from shared.errors import IdentityError
from shared.security.private_files import read_private


@dataclass(frozen=True)
class NodeKey:
    """A node's private key; it shows only its public part."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return a new key."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key.

        Raises:
            IdentityError: If it is missing, damaged, of another sort, or others can read it.
        """
        try:
            private = load_ssh_private_key(read_private(path, "the node's key"), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise IdentityError(
                f"{path}: expected the node's key, ECDSA in OpenSSH's format; it is damaged, cut "
                "short or of another sort; put back the file that was there"
            )
        return cls(private)

    @property
    def public(self) -> str:
        """The public key as ``ecdsa-sha2-nistp384 <base64>``."""
        key = self.private.public_key()
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def pem_public(self) -> bytes:
        """Return the public key as Flower's own messages hold it."""
        return self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    def signed_headers(self) -> dict[str, str]:
        """Return the headers by which a SuperLink knows a node: the signed time."""
        now = datetime.now(UTC).isoformat()
        signature = self.private.sign(now.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-timestamp": now,
            "flwr-public-key": base64.b64encode(self.pem_public()).decode(),
            "flwr-signature": base64.b64encode(signature).decode(),
        }

    def pem(self) -> bytes:
        """Return the private key for its file."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def is_node_key(public: str) -> bool:
    """Return whether a text is the public key of a node, and in no other spelling."""
    try:
        key = load_ssh_public_key(public.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == public
    except (ValueError, UnsupportedAlgorithm):
        return False


def pem_of(public: str) -> bytes:
    """Return a node's public key as Flower's own messages hold it.

    Args:
        public: ``ecdsa-sha2-nistp384 <base64>``, checked before (``is_node_key``).
    """
    key = load_ssh_public_key(public.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
