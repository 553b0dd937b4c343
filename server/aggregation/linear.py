"""The weighted mean of changes as one sum of integers; memory does not grow with the sites."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shared import fixedpoint
from shared.adapter import AdapterLayout, AdapterUpdate, Array, Tower
from shared.errors import AdapterMismatchError
from shared.tensors import Form, Packed, side_by_side


def mean_change(layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
    """Return the mean change of every factor, weighted per tower.

    Sums are taken modulo 2**32, so the result has the same bits in any order. A tower that
    no site trained is absent.

    Raises:
        AdapterMismatchError: If an update has another scale or shape than the others.
    """
    sums: dict[Form, NDArray[np.uint32]] = {}
    weights: dict[Tower, int] = {}
    scale: float | None = None
    for update in updates:
        scale = update.scale if scale is None else scale
        if update.scale != scale:
            raise AdapterMismatchError(
                f"{update.site}: fixed point with {update.scale:g} steps, expected {scale:g}"
            )
        for tower, weight in update.weights.items():
            weights[tower] = weights.get(tower, 0) + weight
        delta = side_by_side(update.delta)
        if delta.form not in sums:  # sites with the same towers send the same form
            check_alike(layout, update, scale)
            sums[delta.form] = np.zeros_like(delta.numbers(np.uint32))
        sums[delta.form] += delta.numbers(np.uint32)  # unsigned: wraps, so modulo 2**32
    if scale is None:
        return {}
    totals: dict[str, NDArray[np.uint32]] = {}
    for form, numbers in sums.items():
        for name, total in Packed(form, numbers).items():
            of_others = totals.get(name, np.uint32(0))
            totals[name] = total.view(np.uint32) + of_others
    return {
        name: fixedpoint.decode(total, weights[layout.tower_of(name)], scale)
        for name, total in totals.items()
    }


def check_alike(layout: AdapterLayout, update: AdapterUpdate, scale: float) -> None:
    """Raise unless an update has the round's scale and the layout's shapes.

    Raises:
        AdapterMismatchError: Naming the site and what does not fit.
    """
    if update.scale != scale:
        raise AdapterMismatchError(
            f"{update.site}: fixed point with {update.scale:g} steps, expected {scale:g}"
        )
    for name, delta in update.delta.items():
        if delta.shape != layout.shapes[name]:
            raise AdapterMismatchError(
                f"{update.site}: {name}: expected shape {layout.shapes[name]}, got {delta.shape}"
            )
