"""Any own function as a residual on the shared one: W0 + s shared + s own.

Products of low rank add up exactly by putting factors side by side:
``w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2]``. So an adapter that replaces the shared one
needs no second kind of file and no second kind of view, and alpha between 0 and 1 interpolates
between the shared function and the own one.
"""

from collections.abc import Collection, Sequence

import numpy as np

from shared.adapter import Adapter, Array, factor_name, pairs


def weighted_sum(
    terms: Sequence[tuple[float, Adapter]], modules: Collection[str]
) -> dict[str, Array]:
    """Return one adapter whose products are the weighted sums of those given, float32.

    Args:
        terms: Weight and adapter; an adapter without a layer adds nothing to it.
        modules: Which layers; those that no adapter has are left out.
    """
    found: dict[str, list[tuple[float, Array, Array]]] = {}
    for weight, adapter in terms:
        for module, b, a in pairs(adapter):
            if module in modules:
                found.setdefault(module, []).append((weight, b, a))
    total: dict[str, Array] = {}
    for module, parts in found.items():
        b = np.concatenate([np.float32(weight) * b for weight, b, _ in parts], axis=1)
        a = np.concatenate([a for _, _, a in parts])
        total[factor_name(module, "B")], total[factor_name(module, "A")] = _bounded(b, a)
    return total


def _bounded(b: Array, a: Array) -> tuple[Array, Array]:
    """Return factors of the same product, of no higher rank than a layer can have.

    What was folded in many rounds, or from many sites, may have more columns than the layer.
    """
    outputs, rank, inputs = *b.shape, a.shape[1]
    if rank <= min(outputs, inputs):
        return b, a
    if inputs <= outputs:
        return b @ a, np.eye(inputs, dtype=np.float32)
    return np.eye(outputs, dtype=np.float32), b @ a
