"""Broken and hostile sites of a simulated federation: what they send instead of their reply.

``[attack] sites = {north = "scale"}`` makes a site train honestly and then send something else,
so that one run shows what the gate (``server.validation``) and a robust rule are worth. The
kinds are those of the threat model: a hostile site knows the protocol, so most of what it sends
is well-formed. A new kind is one function, one line in ``ATTACKS`` and one test.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.config import AttackKind
from shared.messages import Reply, decode_reply, encode
from shared.tensors import Tensors

Sent = tuple[Reply, Tensors]
"""A reply to ``train`` and its tensors: ``weight * change`` in fixed point, as uint32."""

FACTOR = 100
"""How much too large a scaled change is."""

_LARGEST = 2**31 - 1


def scaled(reply: Reply, tensors: Tensors) -> Sent:
    """Send a change a hundred times too large, as far as the integers allow."""
    return reply, {name: _times(array, FACTOR) for name, array in tensors.items()}


def flipped(reply: Reply, tensors: Tensors) -> Sent:
    """Send the opposite of the change: inside every range, and of the same norm."""
    return reply, {name: _times(array, -1) for name, array in tensors.items()}


def not_a_number(reply: Reply, tensors: Tensors) -> Sent:
    """Send NaN, which only floating-point tensors can hold."""
    return reply, {name: np.full(array.shape, np.nan, "<f4") for name, array in tensors.items()}


def misshapen(reply: Reply, tensors: Tensors) -> Sent:
    """Send a single number per factor, which a careless sum would broadcast."""
    return reply, {name: np.ones((1, 1), "<u4") for name in tensors}


def mistyped(reply: Reply, tensors: Tensors) -> Sent:
    """Send the right numbers as 64-bit integers."""
    return reply, {name: array.astype("<i8") for name, array in tensors.items()}


def heavy(reply: Reply, tensors: Tensors) -> Sent:
    """Claim ten thousand times the weight that was given."""
    weights = {tower: min(10_000 * weight, _LARGEST) for tower, weight in reply.weights.items()}
    return reply.model_copy(update={"weights": weights}), tensors


def stale(reply: Reply, tensors: Tensors) -> Sent:
    """Answer the round before: in round 1 nothing is older, so the reply says round 0."""
    return reply.model_copy(update={"round": reply.round - 1}), tensors


ATTACKS: Mapping[AttackKind, Callable[[Reply, Tensors], Sent]] = {
    "scale": scaled,
    "flip": flipped,
    "nan": not_a_number,
    "shape": misshapen,
    "dtype": mistyped,
    "weights": heavy,
    "stale": stale,
}


def with_attackers(answers: Sequence[bytes], hostile: Mapping[str, AttackKind]) -> list[bytes]:
    """Return sites' answers, the training of hostile ones replaced by what they send instead.

    Args:
        answers: As honest sites would send them.
        hostile: Kind of attack by site; others are honest.
    """
    return [corrupted(answer, hostile) for answer in answers] if hostile else list(answers)


def corrupted(answer: bytes, hostile: Mapping[str, AttackKind]) -> bytes:
    """Return what a site sends; as it is unless the site is hostile and answers ``train``."""
    reply, tensors = decode_reply(answer)
    if reply.site not in hostile or reply.kind != "train" or reply.status != "ok":
        return answer
    return encode(*ATTACKS[hostile[reply.site]](reply, dict(tensors)))


def _times(array: NDArray[np.generic], factor: int) -> NDArray[np.uint32]:
    numbers = array.view("<i4").astype(np.int64) * factor
    return numbers.clip(-_LARGEST, _LARGEST).astype("<i4").view("<u4")
