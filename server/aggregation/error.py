"""How far the adapter that was applied is from the mean of what the sites trained."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared import fixedpoint
from shared.adapter import AdapterLayout, AdapterUpdate, SharedAdapter, Tower, factor_name

_LARGEST_MATRICES = 16 * 2**20
"""Entries (m n over all layers) beyond which the dense mean is not worth its memory."""


@dataclass
class ProductError:
    """Sums p_k B_k A_k densely beside a rule that averages both factors.

    Attributes:
        shared: The adapter that the sites trained.
        layout: Which layers carry it.
    """

    shared: SharedAdapter
    layout: AdapterLayout
    _sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _weights: dict[Tower, int] = field(default_factory=dict)

    @staticmethod
    def affordable(layout: AdapterLayout) -> bool:
        """Return whether the dense matrices of all layers together are small enough."""
        return sum(layer.outputs * layer.inputs for layer in layout.layers) <= _LARGEST_MATRICES

    def watch(self, updates: Iterable[AdapterUpdate]) -> Iterator[AdapterUpdate]:
        """Yield the updates unchanged and sum up their products."""
        for update in updates:
            self._add(update)
            yield update

    def relative(self, applied: SharedAdapter) -> float:
        """Return ``||applied - mean|| / ||mean - received||`` over all layers (Frobenius)."""
        error = size = 0.0
        for layer in self.layout.layers:
            if layer.module not in self._sums:
                continue
            mean = self._sums[layer.module] / self._weights[layer.tower]
            error += _square(_product(applied, layer.module) - mean)
            size += _square(_product(self.shared, layer.module) - mean)
        return math.sqrt(error / size) if size else 0.0

    def _add(self, update: AdapterUpdate) -> None:
        for tower, weight in update.weights.items():
            self._weights[tower] = self._weights.get(tower, 0) + weight
        for layer in self.layout.layers:
            weight = update.weights.get(layer.tower, 0)
            if not weight:
                continue
            factors = {}
            for factor in ("A", "B"):
                name = factor_name(layer.module, factor)
                factors[factor] = self.shared.factors[name].astype(np.float64)
                if name in update.delta:
                    factors[factor] += fixedpoint.decode(update.delta[name], weight, update.scale)
            product = weight * (factors["B"] @ factors["A"])
            if layer.module in self._sums:
                self._sums[layer.module] += product
            else:
                self._sums[layer.module] = product


def _product(shared: SharedAdapter, module: str) -> NDArray[np.float64]:
    a, b = (shared.factors[factor_name(module, factor)] for factor in ("A", "B"))
    product: NDArray[np.float64] = b.astype(np.float64) @ a.astype(np.float64)
    return product


def _square(matrix: NDArray[np.float64]) -> float:
    return float(np.square(matrix).sum())
