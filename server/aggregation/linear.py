"""The weighted mean of changes as one sum of integers; memory does not grow with the sites."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shared import fixedpoint
from shared.adapter import AdapterLayout, AdapterUpdate, Array, SharedAdapter, Tower
from shared.errors import AdapterMismatchError


def mean_change(layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
    """Return the mean change of every factor, weighted per tower.

    Sums are taken modulo 2**32, so the result has the same bits in any order. A tower that
    no site trained is absent.

    Raises:
        AdapterMismatchError: If an update has another scale or shape than the others.
    """
    totals: dict[str, NDArray[np.uint32]] = {}
    weights: dict[Tower, int] = {}
    scale: float | None = None
    shapes = layout.shapes
    for update in updates:
        scale = update.scale if scale is None else scale
        if update.scale != scale:
            raise AdapterMismatchError(
                f"{update.site}: fixed point with {update.scale:g} steps, expected {scale:g}"
            )
        for tower, weight in update.weights.items():
            weights[tower] = weights.get(tower, 0) + weight
        for name, delta in update.delta.items():
            if delta.shape != shapes[name]:
                raise AdapterMismatchError(
                    f"{update.site}: {name}: expected shape {shapes[name]}, got {delta.shape}"
                )
            if name in totals:
                totals[name] += delta  # unsigned arrays wrap, which is the sum modulo 2**32
            else:
                totals[name] = delta.copy()
    if scale is None:
        return {}
    return {
        name: fixedpoint.decode(total, weights[layout.tower_of(name)], scale)
        for name, total in totals.items()
    }


def add_mean(
    shared: SharedAdapter,
    layout: AdapterLayout,
    updates: Iterable[AdapterUpdate],
    learning_rate: float,
) -> SharedAdapter:
    """Return the adapter with ``learning_rate`` times the mean change added.

    Factors of towers that no site trained keep every bit.
    """
    change = mean_change(layout, updates)
    factors = dict(shared.factors)
    for name, values in change.items():
        step = values if learning_rate == 1.0 else np.float32(learning_rate) * values
        factors[name] = factors[name] + step
    return SharedAdapter(factors, shared.residual, shared.folds)
