"""From shares to patients: who goes to which site, in whole patients."""

import numpy as np
from numpy.typing import NDArray


def divide(
    groups: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Send patients to sites, so that each site's part of a group is its share of it.

    Parts are rounded to whole patients by one random offset for the group (systematic sampling):
    each is within 1 of its share, and exactly the share on average. Rounding down, as Flower
    Datasets does, would send every lone patient of a group to the last site.

    Args:
        groups: (patients,) row of ``shares`` that each patient follows.
        shares: (groups, sites); rows sum to 1.
        rng: Draws order and offset; patients must come in an order that is always the same.

    Returns:
        (patients,) site of each patient.
    """
    sites = np.zeros(len(groups), np.int64)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        ends = np.cumsum(shares[group])
        ends = np.append(ends[:-1] / ends[-1], 1.0)
        # The small number keeps 3 * (1/3 + 1/3 + 1/3), a little under 3, from being cut to 2.
        cuts = np.floor(ends * len(members) + 0.999999 * rng.random() + 1e-9).astype(np.int64)
        cuts[-1] = len(members)
        places = np.searchsorted(np.minimum(cuts, len(members)), np.arange(len(members)), "right")
        sites[members] = places
    return sites


def largest_remainder(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Split a number into whole parts, each within 1 of its share; ties to the first.

    Args:
        total: What to split.
        shares: (parts,) summing to 1.
    """
    exact = total * shares
    parts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - parts), kind="stable")
    parts[order[: total - parts.sum()]] += 1
    return parts
