"""Quantity skew: sites differ in size and in nothing else.

Site i of n gets a share in proportion to i, i squared or exp(i), as Flower Datasets' linear,
square and exponential partitioners do, or drawn from Dir(alpha) (Li et al., 2022,
https://arxiv.org/abs/2102.02079, section 4.3). Equal shares are the independent, identically
distributed baseline.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sizes = Literal["equal", "linear", "square", "exponential", "dirichlet"]


def quantity(
    sites: int, sizes: Sizes, alpha: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (sites,) shares of all patients, which sum to 1.

    Args:
        sites: How many sites.
        sizes: How the share grows with the site's number.
        alpha: Concentration for ``dirichlet``.
        rng: Draws for ``dirichlet``.
    """
    number = np.arange(1, sites + 1, dtype=np.float64)
    if sizes == "dirichlet":
        return rng.dirichlet(np.full(sites, alpha))
    if sizes == "exponential":
        number = np.exp(number - sites)  # the same shares, and no overflow
    units = {"equal": np.ones(sites), "square": number**2}.get(sizes, number)
    return np.asarray(units / units.sum(), np.float64)
