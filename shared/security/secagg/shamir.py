"""Shares of a secret, of which any ``threshold`` give it back and fewer say nothing.

A polynomial of degree ``threshold - 1`` with uniform coefficients, over the integers modulo
2**521 - 1, whose value at 0 is the secret (Shamir, 1979, https://doi.org/10.1145/359168.359176).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

PRIME: Final = 2**521 - 1
SHARE_BYTES: Final = 66
SECRET_BYTES: Final = 32

Randomness = Callable[[int], bytes]
"""Gives so many bytes; the operating system's generator, but for fixed vectors in tests."""


def split(
    secret: bytes, points: Iterable[int], threshold: int, randomness: Randomness
) -> dict[int, bytes]:
    """Return a share per point.

    Args:
        secret: 32 bytes.
        points: Distinct, from 1 on; at least ``threshold``.
        threshold: Shares that give the secret back.
        randomness: Draws the coefficients.

    Raises:
        ValueError: If the points cannot serve.
    """
    places = sorted(points)
    if len(secret) != SECRET_BYTES or threshold < 1:
        raise ValueError(f"expected a secret of {SECRET_BYTES} bytes and a positive threshold")
    if len(places) < threshold or len(set(places)) < len(places) or places[0] < 1:
        raise ValueError(f"expected at least {threshold} distinct points from 1 on")
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [_draw(randomness) for _ in range(threshold - 1)]
    shares = {}
    for point in places:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret behind shares.

    Args:
        shares: Exactly ``threshold`` shares by point.
        threshold: As the secret was split.

    Raises:
        ValueError: If there are not so many, or they are not shares of one secret.
    """
    if len(shares) != threshold or not shares:
        raise ValueError(f"expected {threshold} shares, got {len(shares)}")
    secret = 0
    for point, share in shares.items():
        above = below = 1
        for other in shares:
            if other != point:
                above = above * -other % PRIME
                below = below * (point - other) % PRIME
        secret = (secret + _value(share) * above * pow(below, -1, PRIME)) % PRIME
    if secret.bit_length() > 8 * SECRET_BYTES:
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def _draw(randomness: Randomness) -> int:
    """Return a uniform number below the prime."""
    while True:
        value = int.from_bytes(randomness(SHARE_BYTES), "big") & PRIME
        if value < PRIME:
            return value


def _value(share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ValueError("not a share")
    return value
