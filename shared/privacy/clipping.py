"""Clipping a change to an L2 norm (McMahan et al., 2018, https://arxiv.org/abs/1710.06963)."""

import math

import numpy as np

from shared.adapter import Adapter
from shared.errors import TrainingError
from shared.tensors import side_by_side

# A float32 is off by at most 2**-24 of itself, so after this the norm is below the limit for
# certain, and the server's check of the same limit never refuses an honest site.
_ROUNDING_MARGIN = 1 - 2.0**-23
_CLEARLY = 0.9
_TINY = 1e-10  # squares of entries far below it would vanish in single precision


def clip(change: Adapter, max_norm: float) -> tuple[Adapter, bool]:
    """Scale a change down to an L2 norm over all its factors together.

    A change within the norm is returned as it is.

    Args:
        change: Trained minus received factors, by name.
        max_norm: The largest norm that may leave the site.

    Returns:
        The change, and whether it was scaled down.

    Raises:
        TrainingError: ``change-not-finite`` if the change holds an infinity or not-a-number.
    """
    if max_norm > _TINY and _rough_norm(change) <= max_norm * _CLEARLY:
        return change, False
    norm = l2_norm(change)
    if not math.isfinite(norm):
        raise TrainingError(
            "change-not-finite", "training left values that are not finite; nothing is sent"
        )
    if norm <= max_norm:
        return change, False
    factor = max_norm / norm * _ROUNDING_MARGIN
    scaled = {
        name: (values.astype(np.float64) * factor).astype(np.float32)
        for name, values in change.items()
    }
    return scaled, True


def _rough_norm(change: Adapter) -> float:
    """Return the L2 norm to a percent, in single precision and one go.

    It decides only where the norm is clearly below the limit, as it nearly always is. Infinity
    and not-a-number stay what they are, so they are never below it.
    """
    values = side_by_side(change).numbers(np.float32)
    with np.errstate(over="ignore"):  # then it is infinity, and the exact norm decides
        return math.sqrt(float(values @ values))


def l2_norm(change: Adapter) -> float:
    """Return the L2 norm over all factors, summed in float64."""
    squares = (float(np.square(v, dtype=np.float64).sum()) for v in change.values())
    return math.sqrt(math.fsum(squares))
