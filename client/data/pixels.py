"""From stored values to the 8 bit that an encoder sees."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.generic]
_LEVELS = 2**16
WindowShape = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def scaled(values: Numbers, low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low`` to 0 and ``high`` to 255, linearly; what lies outside is clipped.

    If there is no range (``high <= low``) everything is 0.
    """
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 and values.size > _LEVELS:
        # Large pictures have few levels: looking each up is five times faster.
        limits = np.iinfo(values.dtype.name)
        table = scaled(np.arange(limits.min, limits.max + 1, dtype=np.int64), low, high)
        return table[values.astype(np.int64) - limits.min]
    return _eight_bit((values.astype(np.float64) - low) / (high - low))


def stretched(values: Numbers, counted: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Map the smallest value to 0 and the largest to 255.

    Args:
        values: Any numbers.
        counted: Where to look for the smallest and largest; everywhere if ``None``.

    Raises:
        ValueError: If a value is not finite.
    """
    inside = values if counted is None else values[counted]
    if not inside.size:
        return np.zeros(values.shape, np.uint8)
    low, high = float(inside.min()), float(inside.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("values are not finite")
    return scaled(values, low, high)


def windowed(
    values: Numbers, center: float, width: float, shape: WindowShape = "LINEAR"
) -> NDArray[np.uint8]:
    """Apply a window as DICOM defines it (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    ``LINEAR`` counts whole grey levels: it maps ``center - width / 2`` to 0 and
    ``center + width / 2 - 1`` to 255.
    """
    exact = values.astype(np.float64)
    if shape == "SIGMOID":
        return _eight_bit(1 / (1 + np.exp(np.clip(-4 * (exact - center) / width, -700, 700))))
    if shape == "LINEAR":
        center, width = center - 0.5, width - 1
    return scaled(exact, center - width / 2, max(center + width / 2, center + 1e-6))


def _eight_bit(unit: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
