"""Ranks of single sites: the first columns of B and rows of A, and filling them up again.

A site of rank q trains the first q columns of B and rows of A; its change is as small as that.
Filled up with zeros it fits the run's factors, and ``(B + D) (A + E)`` is what the site trained,
so that every rule can treat it as one site among others. NumPy only.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.adapter import AdapterLayout, factor_of

Number = TypeVar("Number", bound=np.generic)


def leading(adapter: Mapping[str, NDArray[Number]], rank: int) -> Mapping[str, NDArray[Number]]:
    """Return the first ``rank`` columns of every B and rows of every A.

    Factors that have no more are not copied.
    """
    if all(_rank_of(name, array) <= rank for name, array in adapter.items()):
        return adapter
    return {
        name: np.ascontiguousarray(array[:rank] if factor_of(name) == "A" else array[:, :rank])
        for name, array in adapter.items()
    }


def filled(
    adapter: Mapping[str, NDArray[Number]], layout: AdapterLayout
) -> Mapping[str, NDArray[Number]]:
    """Return factors of a layout's rank: what is missing is zero.

    Raises:
        ValueError: If a factor has more columns or rows than the layout's.
    """
    shapes = layout.shapes
    if all(array.shape == shapes[name] for name, array in adapter.items()):
        return adapter
    whole: dict[str, NDArray[Number]] = {}
    for name, array in adapter.items():
        if not 1 <= _rank_of(name, array) <= layout.rank:
            raise ValueError(f"{name}: expected a rank from 1 to {layout.rank}")
        whole[name] = np.zeros(shapes[name], array.dtype)
        whole[name][: array.shape[0], : array.shape[1]] = array
    return whole


def _rank_of(name: str, array: NDArray[Number]) -> int:
    return int(array.shape[0 if factor_of(name) == "A" else 1])
