"""Dirichlet over labels: the share of each class that goes to each site is drawn.

For every class k, p_k ~ Dir(alpha, ..., alpha) over the sites, and site j gets the share p_kj of
its patients (Yurochkin et al., 2019, https://arxiv.org/abs/1905.12022). Hsu et al. (2019,
https://arxiv.org/abs/1909.06335) made alpha the usual measure of label skew; they draw per site
over classes instead. The definition, with its self-balancing, is that of Flower Datasets'
``DirichletPartitioner``. Two things differ: classes are taken in the order of their names and not
of the rows, and parts are rounded without bias (``simulations.partition.divide``).
"""

import numpy as np
from numpy.typing import NDArray


def dirichlet(
    counts: NDArray[np.int64],
    sites: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    self_balancing: bool = False,
) -> NDArray[np.float64]:
    """Draw which share of each class goes to each site.

    Args:
        counts: (classes,) patients of each class.
        sites: How many sites.
        alpha: Concentration; towards 0 a class goes to one site, towards infinity to all alike.
        rng: Draws the shares.
        self_balancing: A site that already has more than the mean gets nothing of the next class.

    Returns:
        (classes, sites) shares; every row sums to 1.
    """
    shares = np.zeros((len(counts), sites))
    held = np.zeros(sites)
    for row, count in enumerate(counts):
        drawn = rng.dirichlet(np.full(sites, alpha))
        if self_balancing:
            drawn = np.where(held > counts.sum() / sites, 0.0, drawn)
            if not drawn.sum() > 0:  # a tiny alpha put everything where it must not go
                drawn = (held <= counts.sum() / sites).astype(np.float64)
        shares[row] = drawn / drawn.sum()
        held += count * shares[row]
    return shares
