"""Sites with ranks of their own: each trains the first columns, the rest rests in its base.

A site of rank q gets the first q columns of B and rows of A as factors, and the product of the
others in its residual, so that it computes the global function. It changes only what it has.
Filled up with zeros, its change fits the global factors, and ``(B + D) (A + E)`` is what the
site trained: any rule treats it as one site among others, and exact rules stay exact. Where the
columns are in order of singular values (``flexlora``, ``altfold``) the first are those that
matter most.
"""

import dataclasses

import numpy as np

from server.aggregation.folding import extended
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    Array,
    SharedAdapter,
    factor_name,
    factor_of,
)


def at_rank(
    shared: SharedAdapter, layout: AdapterLayout, rank: int
) -> tuple[SharedAdapter, AdapterLayout]:
    """Return the adapter and its layout as a site of a smaller rank trains them.

    The function is the same: the scaling stays that of the run.

    Raises:
        ValueError: If the rank is not between 1 and the layout's.
    """
    _check(rank, layout)
    factors: dict[str, Array] = {}
    residual = dict(shared.residual)
    for layer in layout.layers:
        name_a, name_b = factor_name(layer.module, "A"), factor_name(layer.module, "B")
        a, b = shared.factors[name_a], shared.factors[name_b]
        factors[name_a], factors[name_b] = a[:rank].copy(), b[:, :rank].copy()
        if b[:, rank:].any():
            residual |= extended(shared.residual, layer, b[:, rank:], a[rank:])
    smaller = dataclasses.replace(layout, rank=rank)
    return SharedAdapter(factors, residual, shared.folds), smaller


def widened(update: AdapterUpdate, layout: AdapterLayout) -> AdapterUpdate:
    """Return a change of a smaller rank as one of the layout's: what is missing is zero.

    Raises:
        ValueError: If a factor's rank is not between 1 and the layout's.
    """
    wide = {}
    for name, delta in update.delta.items():
        rank = delta.shape[0 if factor_of(name) == "A" else 1]
        _check(rank, layout)
        filled = np.zeros(layout.shape_of(name), np.uint32)
        filled[: delta.shape[0], : delta.shape[1]] = delta
        wide[name] = filled
    return dataclasses.replace(update, delta=wide)


def _check(rank: int, layout: AdapterLayout) -> None:
    if not 1 <= rank <= layout.rank:
        raise ValueError(f"a site's rank must be from 1 to the run's {layout.rank}, got {rank}")
