"""Changes of an adapter as integers, so that their sum is exact and has no order.

A site multiplies its change by its integer weight w and by ``scale`` (a power of two, the
same for all sites of a round), rounds to the nearest integer and sends it in two's
complement modulo 2**32. Sums of integers are associative, so neither the order of arrival
nor additive masking (Bonawitz et al., 2017, https://eprint.iacr.org/2017/281) changes a bit
of the result. NumPy only.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from shared.adapter import Array
from shared.errors import WireError
from shared.tensors import Packed, form_of, side_by_side

LARGEST = 2**31 - 1
"""The largest sum that two's complement in 32 bits can hold."""

_PIECE = 32768
_TOO_LARGE = (
    "a change is not finite or too large for fixed point with {:g} steps per unit; clip it first"
)


def choose_scale(total_weight: int, clip_norm: float, sites: int) -> float:
    """Return the largest power of two for which the sum over all sites cannot wrap.

    No coordinate of a clipped change exceeds ``clip_norm``, and rounding adds less than one
    step per site, so ``total_weight * clip_norm * scale + sites <= 2**31 - 1``.

    Args:
        total_weight: Sum of the sites' integer weights, of the heaviest tower.
        clip_norm: L2 norm that a site's change is clipped to.
        sites: How many sites may answer.

    Raises:
        ValueError: If an argument is not positive.
    """
    if total_weight < 1 or sites < 1 or not 0 < clip_norm < math.inf:
        raise ValueError(
            "fixed point needs a positive weight, clip norm and number of sites, got "
            f"{total_weight}, {clip_norm}, {sites}"
        )
    exponent = math.floor(math.log2((LARGEST - sites) / (total_weight * clip_norm)))
    while total_weight * clip_norm * 2.0**exponent > LARGEST - sites:  # log2 may round up
        exponent -= 1
    return 2.0**exponent


def largest_entry(weight: int, clip_norm: float, scale: float) -> int:
    """Return the largest magnitude that one site's entry may have in fixed point."""
    return min(LARGEST, math.ceil(weight * clip_norm * scale))


def encode(change: Mapping[str, Array], weight_of: Callable[[str], int], scale: float) -> Packed:
    """Return ``round(weight * change * scale)`` in two's complement, uint32.

    Args:
        change: Trained minus received factors, float32, by name.
        weight_of: The site's integer weight for the tower of a factor, by the factor's name.
        scale: Steps per unit.

    Raises:
        WireError: If a value is not finite or does not fit; it is never wrapped.
    """
    form = form_of(change, np.uint32)
    # All factors as one array: they are many and small.
    values = side_by_side(change).numbers(np.float32).copy()
    start = 0
    for weight, places in itertools.groupby(form.places, lambda place: weight_of(place.name)):
        end = start + sum(place.entries for place in places)
        if not _to_steps(values[start:end], weight * scale):
            raise WireError(f"{_misfit(change, weight_of, scale)}: {_TOO_LARGE.format(scale)}")
        start = end
    return Packed(form, values)


def _to_steps(values: Array, factor: float) -> bool:
    """Put ``round(value * factor)`` as int32 in the place of every value, if all of them fit.

    Piece by piece, because memory for all values in double precision costs more than the work.
    """
    if not values.size:
        return True
    ends = np.rint(np.array([values.min(), values.max()], np.float64) * factor)
    if not (ends[0] >= -LARGEST and ends[1] <= LARGEST):  # not-a-number fits nowhere
        return False
    room = np.empty(min(_PIECE, values.size), np.float64)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        steps = np.multiply(piece, factor, out=room[: piece.size], dtype=np.float64)
        np.rint(steps, out=steps)
        piece.view(np.int32)[:] = steps
    return True


def _misfit(change: Mapping[str, Array], weight_of: Callable[[str], int], scale: float) -> str:
    """Return the first factor that does not fit."""
    for name, values in change.items():
        steps = np.rint(values.astype(np.float64) * (weight_of(name) * scale))
        if not (np.abs(steps) <= LARGEST).all():
            return name
    raise ValueError("every factor fits")


def decode(total: NDArray[np.uint32], total_weight: int, scale: float) -> Array:
    """Return the weighted mean change behind a sum of encoded changes, float32."""
    steps = total.view(np.int32).astype(np.float64)
    return (steps / (scale * total_weight)).astype(np.float32)
