"""How much of the base an adapter replaces: what a site refuses to start from.

A coordinator that was taken over may send an adapter made to get at records: factors so large that
next to nothing is left of the base, whose gradients then show single inputs. Nothing that was
trained is like that, because what a round adds is short.
"""

from collections.abc import Mapping

import numpy as np

from shared.adapter import Adapter, AdapterLayout, Array, SharedAdapter, factor_name
from shared.errors import RefusedError
from shared.latest import Latest

_LARGEST_FACTOR = 100.0
"""Times the root of its rank: L2 norm of a factor. With random or orthonormal rows it is about
one; a factor can be large without any product, while the other one is zero."""

_shares: Latest[float] = Latest()


def check_size(
    shared: SharedAdapter, layout: AdapterLayout, frozen: Mapping[str, float], most: float
) -> None:
    """Raise if an adapter replaces too much of the base.

    Args:
        shared: Fits the layout.
        layout: Of the site's encoder.
        frozen: L2 norm of every adapted layer's frozen weight, by module.
        most: Of ``share_of``.

    Raises:
        RefusedError: ``policy-adapter``.
    """
    largest = _shares.get((shared, layout), lambda: share_of(shared, layout, frozen))
    if not largest <= most:
        text = f"the adapter is {largest:.3g} times as large as the base, allowed is {most:g}"
        raise RefusedError("policy-adapter", text)


def share_of(shared: SharedAdapter, layout: AdapterLayout, frozen: Mapping[str, float]) -> float:
    """Return the largest of all layers: the norm of what is added, over that of what is there.

    Infinite if a single factor is larger than any training makes it.

    Args:
        shared: Adds s (B A + B_res A_res) to a layer's weight.
        layout: Names the layers, and s.
        frozen: L2 norm of every adapted layer's frozen weight, by module.
    """
    largest = 0.0
    for layer in layout.layers:
        pairs = [_pair(part, layer.module) for part in (shared.residual, shared.factors)]
        factors = [pair for pair in pairs if pair is not None]
        if not factors:
            continue
        for matrix in (matrix for pair in factors for matrix in pair):
            if np.linalg.norm(matrix) > _LARGEST_FACTOR * min(matrix.shape) ** 0.5:
                return float("inf")
        b = np.concatenate([b for b, _ in factors], axis=1).astype(np.float64)
        a = np.concatenate([a for _, a in factors], axis=0).astype(np.float64)
        # The norm of B A from what its factors have in common: no (m, n) matrix is made.
        added = layout.scaling * max(0.0, float(((b.T @ b) * (a @ a.T)).sum())) ** 0.5
        there = frozen[layer.module]
        if added > 0:
            largest = max(largest, added / there if there > 0 else float("inf"))
    return largest


def _pair(part: Adapter, module: str) -> tuple[Array, Array] | None:
    names = factor_name(module, "B"), factor_name(module, "A")
    return (part[names[0]], part[names[1]]) if names[0] in part and names[1] in part else None
