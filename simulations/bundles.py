"""Several bodies of the protocol as one: the requests to a cohort of sites, or their answers.

A bundle is ``b"CONB" + version byte + number of bodies (4 bytes) + length of the tail (8 bytes)``,
then per body the number of its site (4 bytes) and the length of its head (8 bytes), then all
heads and the tail; numbers are little endian. Every body is its head and the tail: the requests
of a round end alike, and their end, the adapter above all, is in the bundle once.
"""

import struct
from collections.abc import Sequence

from shared.errors import WireError

_MAGIC = b"CONB\x01"
_SIZES = struct.Struct("<IQ")
_ENTRY = struct.Struct("<IQ")


def bundle(heads: Sequence[tuple[int, bytes]], tail_bytes: int = 0) -> bytes:
    """Return a bundle up to its tail.

    Args:
        heads: Number of a site, and what of its body is its own.
        tail_bytes: Length of the end that all bodies share; whoever sends the bundle puts it
            behind what is returned.
    """
    table = [_ENTRY.pack(site, len(head)) for site, head in heads]
    start = _MAGIC + _SIZES.pack(len(heads), tail_bytes)
    return b"".join([start, *table, *(head for _, head in heads)])


def unbundle(content: bytes) -> list[tuple[int, bytes]]:
    """Return the bodies of a bundle with the numbers of their sites, in order.

    Raises:
        WireError: If it is no bundle, longer or shorter than it says, or has a site twice.
    """
    start = len(_MAGIC) + _SIZES.size
    if len(content) < start or not content.startswith(_MAGIC):
        raise WireError(f"bundle: expected bodies of several sites, got {len(content)} bytes")
    count, tail_bytes = _SIZES.unpack_from(content, len(_MAGIC))
    position = start + count * _ENTRY.size
    if position > len(content):
        raise WireError(f"bundle: shorter than its {count} bodies")
    entries = list(_ENTRY.iter_unpack(content[start:position]))
    expected = position + sum(length for _, length in entries) + tail_bytes
    if len(content) != expected:
        raise WireError(f"bundle: expected {expected} bytes, got {len(content)}")
    if len({site for site, _ in entries}) < count:
        raise WireError("bundle: has a site twice")
    tail = content[len(content) - tail_bytes :]
    bodies = []
    for site, length in entries:
        bodies.append((site, content[position : position + length] + tail))
        position += length
    return bodies
