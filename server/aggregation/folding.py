"""Folding: the adapter's product moves into a residual, and the adapter starts afresh.

Folding is a change of form of what was released already, so it costs no privacy. It lets an
adapter of rank r learn a change of higher rank, one step of rank r after another.
"""

import numpy as np

from server.aggregation.base import fresh_factors
from server.aggregation.gauge import bounded
from shared.adapter import (
    Adapter,
    AdapterLayout,
    Array,
    LayerShape,
    SharedAdapter,
    factor_name,
)
from shared.seeding import derive_seed


def folds_before(round_number: int, fold_every: int) -> bool:
    """Return whether the adapter is folded before a round (1-based)."""
    return fold_every > 0 and round_number > 1 and (round_number - 1) % fold_every == 0


def fold(shared: SharedAdapter, layout: AdapterLayout, seed: int) -> SharedAdapter:
    """Return the same function with B A in the residual, a new seeded A and B = 0.

    The residual stays in factors, at most min(m, n) columns of them, so it does not grow
    with the number of rounds.
    """
    factors: dict[str, Array] = {}
    residual: dict[str, Array] = {}
    folds = shared.folds + 1
    for layer in layout.layers:
        name_a, name_b = factor_name(layer.module, "A"), factor_name(layer.module, "B")
        a, b = shared.factors[name_a], shared.factors[name_b]
        if not b.any():  # an untrained layer: nothing to fold, and its A is still unused
            factors[name_a], factors[name_b] = a, b
            if name_a in shared.residual:
                residual[name_a] = shared.residual[name_a]
                residual[name_b] = shared.residual[name_b]
            continue
        residual |= extended(shared.residual, layer, b, a)
        fresh_seed = derive_seed(seed, "lora-A", folds, layer.module)
        factors |= fresh_factors(layout, layer, fresh_seed)
    return SharedAdapter(factors, residual, folds)


def extended(residual: Adapter, layer: LayerShape, b: Array, a: Array) -> dict[str, Array]:
    """Return a layer's part of the residual with the product ``b @ a`` added.

    Args:
        residual: Of all layers, as it was.
        layer: The layer.
        b: (m, k), of any rank k.
        a: (k, n).
    """
    name_a, name_b = factor_name(layer.module, "A"), factor_name(layer.module, "B")
    if name_a in residual:
        a = np.concatenate([residual[name_a], a])
        b = np.concatenate([residual[name_b], b], axis=1)
    b, a = bounded(b, a)
    return {name_b: b, name_a: a}
