"""Encryption of files at rest: AES-256-GCM in frames, and keys wrapped by other keys.

A sealed file is a header and frames of up to 1 MiB. Each frame is bound to the file's header, to
its number and to whether it is the last, so that frames cannot be left out, swapped, repeated or
cut off; the header names what the file is, so that one file cannot stand in for another. Every
file has a key of its own, derived from the data key and 32 random bytes, so that counting from 0
never uses a nonce twice.

Secrets stay in the memory of the process as long as Python keeps them: it cannot be told to
overwrite them.
"""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from shared.security.derive import hkdf_sha256

KEY_BYTES: Final = 32
FRAME_BYTES: Final = 2**20
SALT_BYTES: Final = 32

_MAGIC: Final = b"consilia sealed 1\n"
MARK_BYTES: Final = len(_MAGIC)
"""So many bytes tell whether a file is sealed."""

_TAG_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_LONGEST_HEADER: Final = 4096
_SCRYPT_N: Final = 2**17
_SCRYPT_R: Final = 8
"""With n of 2**17 a guess takes 128 MiB and some tenths of a second."""


class SealError(ValueError):
    """What should be opened is damaged, cut short, another file, or sealed with another key."""


def new_key() -> bytes:
    """Return a new key from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def seal(key: bytes, key_name: str, name: str, content: bytes) -> bytes:
    """Encrypt a file.

    Args:
        key: Data key.
        key_name: Which it is, kept in the header in the clear.
        name: What the file is; bound to it but not written into it.
        content: All of it.

    Raises:
        ValueError: If the key's name is too long.
    """
    salt = os.urandom(SALT_BYTES)
    named = key_name.encode()
    if len(named) > _LONGEST_HEADER:
        raise ValueError("the name of a data key is too long")
    header = b"".join([_MAGIC, len(named).to_bytes(2, "big"), named, salt])
    cipher = AESGCM(_file_key(key, salt))
    bound = header + name.encode()
    # An empty file has one empty frame, so that even that one cannot be taken away.
    starts = range(0, max(len(content), 1), FRAME_BYTES)
    frames = [
        cipher.encrypt(
            _nonce(number),
            content[start : start + FRAME_BYTES],
            _aad(bound, number, last=start == starts[-1]),
        )
        for number, start in enumerate(starts)
    ]
    return b"".join([header, *frames])


def key_name_of(sealed: bytes) -> str:
    """Return which data key a file names; it is believed only once the file opens.

    Raises:
        SealError: If it is no sealed file.
    """
    return _header(sealed)[0]


def is_sealed(content: bytes) -> bool:
    """Return whether content says that it is a sealed file."""
    return content.startswith(_MAGIC)


def unseal(key: bytes, name: str, sealed: bytes) -> bytes:
    """Decrypt a file.

    Args:
        key: The data key that the header names.
        name: What the file is, as it was sealed.
        sealed: All of it.

    Raises:
        SealError: If a bit differs from what was sealed, or key or name do.
    """
    _, end, salt = _header(sealed)
    cipher = AESGCM(_file_key(key, salt))
    bound = sealed[:end] + name.encode()
    step = FRAME_BYTES + _TAG_BYTES
    starts = range(end, max(len(sealed), end + 1), step)
    try:
        return b"".join(
            cipher.decrypt(
                _nonce(number),
                sealed[start : start + step],
                _aad(bound, number, last=start == starts[-1]),
            )
            for number, start in enumerate(starts)
        )
    except (InvalidTag, ValueError):
        raise SealError("changed, cut short, another file, or sealed with another key") from None


def wrap(wrapping: bytes, key: bytes, purpose: str) -> bytes:
    """Encrypt a key with another one, for a purpose that it is bound to."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(wrapping).encrypt(nonce, key, purpose.encode())


def unwrap(wrapping: bytes, wrapped: bytes, purpose: str) -> bytes:
    """Decrypt a key.

    Raises:
        SealError: If it was wrapped with another key, for another purpose, or is damaged.
    """
    nonce, content = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
    try:
        return AESGCM(wrapping).decrypt(nonce, content, purpose.encode())
    except (InvalidTag, ValueError):
        raise SealError("wrapped with another key, or damaged") from None


def key_id(key: bytes) -> str:
    """Return what tells a key from others and gives nothing of it away."""
    return hkdf_sha256(key, b"key id", 8).hex()


def key_of_passphrase(passphrase: str, salt: bytes) -> bytes:
    """Return the key of a passphrase (scrypt, RFC 7914)."""
    return Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=1).derive(
        passphrase.encode()
    )


def _header(sealed: bytes) -> tuple[str, int, bytes]:
    """Return the data key's name, where the frames begin, and the salt."""
    start = len(_MAGIC) + 2
    length = int.from_bytes(sealed[len(_MAGIC) : start], "big")
    end = start + length + SALT_BYTES
    if not is_sealed(sealed) or length > _LONGEST_HEADER or len(sealed) < end:
        raise SealError("not a sealed file, or cut short")
    try:
        return sealed[start : start + length].decode(), end, sealed[end - SALT_BYTES : end]
    except UnicodeDecodeError:
        raise SealError("its header is damaged") from None


def _file_key(key: bytes, salt: bytes) -> bytes:
    return hkdf_sha256(key, b"sealed file" + salt, KEY_BYTES)


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


def _aad(bound: bytes, number: int, *, last: bool) -> bytes:
    return b"".join([bound, number.to_bytes(8, "big"), bytes([last])])
