"""Gaussian noise in whole steps, from the operating system's generator.

Noise made of floating-point numbers leaks through their last bits (Mironov, 2012,
https://doi.org/10.1145/2382196.2382264), and generators that repeat can be run again by whoever
learns their state. Here noise is a whole number of steps, and its bits come from the operating
system.

The distribution is that of ``floor(g)`` for a Gaussian g with a standard deviation of 2**bits
steps. For a sum x of whole steps, ``x + floor(g)`` is ``floor(x + g)``: it can be computed from
the continuous Gaussian mechanism's output, so whatever an accountant proves of that one holds for
what is released.

How it is drawn: the cell of |g|, 1/1024 of a standard deviation wide, by 64 random bits and a
table; beyond each whole standard deviation by another 64 bits, so that tails are as exact as the
middle. Then the step within the cell by rejection, which almost never rejects. ``RELATIVE_ERROR``
bounds what 64 bits and double precision lack.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx

Draw = Callable[[int], bytes]
"""Gives that many random bytes."""

operating_system: Final[Draw] = os.urandom
"""The only source of bytes for noise and samples of which privacy may be claimed."""

BITS: Final = 24
"""Standard deviation of the noise where nothing else limits it: 2**24 steps."""
LEAST_BITS: Final = 20
"""Below it the steps of a cell are too few for the error bound of this module."""
RELATIVE_ERROR: Final = 2.0**-44
"""How much the probability of a value may be off, relative to itself, within 9 standard
deviations; beyond, where one of 2**61 draws lies, it is 2**-37."""

_CELLS = 1024
"""Cells in one standard deviation."""
_FARTHEST = 14
"""Standard deviations; a draw beyond them has a probability of 2**-146."""
_AT_ONCE = 1 << 18


def gaussian_steps(
    count: int, bits: int = BITS, draw: Draw = operating_system
) -> NDArray[np.int64]:
    """Return independent noise.

    Args:
        count: How many.
        bits: The standard deviation is ``2**bits`` steps.
        draw: Where random bytes come from.

    Returns:
        (count,) int64, of mean -1/2: the whole part of a Gaussian.

    Raises:
        ValueError: If ``bits`` is outside of what the error bound holds for.
    """
    if not LEAST_BITS <= bits <= BITS:
        raise ValueError(f"noise of 2**{bits} steps; expected 2**{LEAST_BITS} to 2**{BITS}")
    noise = np.empty(count, np.int64)
    for start in range(0, count, _AT_ONCE):  # the numbers of a piece stay in the cache
        piece = noise[start : start + _AT_ONCE]
        cells = _cells(piece.size, draw)
        below = cells << (bits - _CELLS.bit_length() + 1)
        piece[:] = below + _within(below, bits, draw)
        negative = np.unpackbits(
            np.frombuffer(draw((piece.size + 7) // 8), np.uint8), count=piece.size
        ).view(bool)
        np.invert(piece, out=piece, where=negative)  # -x - 1: floor(-g) for floor(g) = x
    return noise


def seeded(seed: int) -> Draw:
    """Return a source that repeats, for tests and simulations; never for real records.

    Whatever is made with it has no privacy: who knows the seed can take the noise away.
    """
    position = 0

    def draw(count: int) -> bytes:
        nonlocal position
        position += 1
        return hashlib.shake_256(f"{seed} {position}".encode()).digest(count)

    return draw


def random_words(count: int, draw: Draw) -> NDArray[np.uint64]:
    """Return (count,) uint64, all values equally likely."""
    return np.frombuffer(draw(8 * count), np.uint64)


def _cells(count: int, draw: Draw) -> NDArray[np.int64]:
    """Return the cell of |g|, in 1/1024 of a standard deviation, from 0 on."""
    cells = np.searchsorted(_thresholds(0), random_words(count, draw), side="right")
    pending = np.flatnonzero(cells == _CELLS)
    for deviation in range(1, _FARTHEST):
        if not pending.size:
            break
        words = random_words(pending.size, draw)
        found = np.searchsorted(_thresholds(deviation), words, side="right")
        cells[pending] = deviation * _CELLS + found
        pending = pending[found == _CELLS]
    cells[pending] = _FARTHEST * _CELLS - 1
    return cells.astype(np.int64, copy=False)


@lru_cache(maxsize=_FARTHEST)
def _thresholds(deviation: int) -> NDArray[np.uint64]:
    """Return for 64 random bits where each cell of one standard deviation ends.

    Of the Gaussian given that it is at least ``deviation`` standard deviations out; bits beyond
    the last threshold stand for farther out than this one standard deviation.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    starts = deviation + np.arange(_CELLS) / _CELLS
    places = starts[:, None] + (nodes[None, :] + 1) / (2 * _CELLS)
    # Relative to the density at ``deviation``, so that nothing is too small for a number.
    density = np.exp(-(places - deviation) * (places + deviation) / 2)
    farther = math.exp(-deviation - 0.5) * erfcx((deviation + 1) / math.sqrt(2))
    masses = [*(density @ weights) / (2 * _CELLS), math.sqrt(math.pi / 2) * farther]
    # In whole numbers, so that sums lose nothing and each cell is as exact as its own mass.
    whole = [int(float(mass) * 2.0**100) for mass in masses]
    total = sum(whole)
    ends = itertools.accumulate(whole[:-1])
    return np.array([(end << 64) // total for end in ends], np.uint64)


def _within(below: NDArray[np.int64], bits: int, draw: Draw) -> NDArray[np.int64]:
    """Return how many steps above the start of its cell each draw is.

    The density at ``start + s + 1/2``, relative to that at ``start + 1/2``, is
    ``exp(-s (2 start + s + 1) / (2 * 4**bits))``: all of it whole numbers below 2**53.
    """
    mask = (1 << (bits - _CELLS.bit_length() + 1)) - 1
    steps = np.empty(below.size, np.int64)
    pending = np.arange(below.size)
    while pending.size:
        start = below[pending]
        candidate = np.frombuffer(draw(2 * pending.size), np.uint16).astype(np.int64) & mask
        loss = (candidate * (2 * start + candidate + 1)) * 0.5 ** (2 * bits + 1)
        uniform = (random_words(pending.size, draw) >> np.uint64(11)) * 2.0**-53
        steps[pending] = candidate
        pending = pending[uniform >= np.exp(-loss)]
    return steps
