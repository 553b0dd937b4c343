"""Key derivation (HKDF, RFC 5869)."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf_sha256(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """Derive ``length`` bytes from a secret for the purpose that ``info`` names."""
    return HKDF(algorithm=SHA256(), length=length, salt=b"consilia", info=info).derive(secret)
