"""Pathological: every site has a fixed number of classes and nothing else.

McMahan et al. (2017, https://arxiv.org/abs/1602.05629) gave each client two shards of records
sorted by label. Here, as in Li et al. (2022, https://arxiv.org/abs/2102.02079) and Flower
Datasets' ``PathologicalPartitioner``, each site is assigned exactly so many classes, and the
sites of a class share it evenly. Flower leaves out records of a class that no site got; here
the classes are assigned again, or the job is refused, so that no patient is lost.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Assignment = Literal["random", "deterministic", "first-deterministic"]


def assigned_classes(
    classes: int, sites: int, per_site: int, how: Assignment, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Assign classes to sites.

    Args:
        classes: How many classes there are.
        sites: How many sites.
        per_site: Classes of a site, at most ``classes``.
        how: ``random``; ``deterministic``: site i has i, i + 1, ...; ``first-deterministic``:
            site i has i and random others.
        rng: Draws the random ones.

    Returns:
        (classes, sites), true where a site has a class; every column has ``per_site`` of them.
    """
    has = np.zeros((classes, sites), np.bool_)
    for site in range(sites):
        if how == "deterministic":
            chosen = (site + np.arange(per_site)) % classes
        elif how == "random":
            chosen = rng.permutation(classes)[:per_site]
        else:
            others = rng.permutation(np.delete(np.arange(classes), site % classes))
            chosen = np.array([site % classes, *others[: per_site - 1]])
        has[chosen, site] = True
    return has


def pathological(has: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (classes, sites) shares: the sites of a class share it evenly.

    Args:
        has: (classes, sites) as ``assigned_classes`` returns it; every class at some site.
    """
    return np.asarray(has / has.sum(axis=1, keepdims=True), np.float64)
