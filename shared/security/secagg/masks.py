"""Masks: keystreams (AES-256 in counter mode), added to or taken from a vector modulo 2**32.

They are made and applied piece by piece, all masks on one piece before the next: besides the
vector, memory for two pieces is all that is needed, and a piece stays in the processor's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

_PIECE: Final = 16384
"""Entries; 64 KiB."""
_ENTRY: Final = 4
_BLOCK: Final = 16


@dataclass(frozen=True)
class Mask:
    """A mask, and which way it goes.

    Attributes:
        key: 32 bytes, of this mask only.
        added: Added to the vector; else taken from it.
    """

    key: bytes = field(repr=False)
    added: bool


def apply_masks(vector: NDArray[np.uint32], masks: Sequence[Mask]) -> None:
    """Apply masks to a vector, in place.

    Args:
        vector: (entries,), contiguous.
        masks: All of them.
    """
    streams = [(np.add if mask.added else np.subtract, _stream(mask.key)) for mask in masks]
    length = min(_PIECE, vector.size) * _ENTRY
    nothing, room = bytes(length), bytearray(length + _BLOCK - 1)  # as the library wants it
    numbers = np.frombuffer(room, "<u4", length // _ENTRY)
    for start in range(0, vector.size, _PIECE):
        piece = vector[start : start + _PIECE]
        zeros = nothing[: piece.size * _ENTRY]
        for apply, stream in streams:
            stream.update_into(zeros, room)
            apply(piece, numbers[: piece.size], out=piece)


def _stream(key: bytes) -> CipherContext:
    return Cipher(AES256(key), CTR(bytes(_BLOCK))).encryptor()
