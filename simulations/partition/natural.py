"""Natural: the sites are the values of a column (place, scanner, report style, language)."""

import numpy as np
from numpy.typing import NDArray


def natural(classes: int) -> NDArray[np.float64]:
    """Return (classes, classes) shares: each value is a site of its own."""
    return np.eye(classes)
