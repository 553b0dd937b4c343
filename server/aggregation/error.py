"""How far the adapter that was applied is from the mean of what the sites trained."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.adapter import (
    TOWERS,
    AdapterLayout,
    AdapterUpdate,
    LayerShape,
    SharedAdapter,
    Tower,
    factor_name,
)

_LARGEST_MATRICES = 16 * 2**20
"""Entries (m n over all layers) beyond which the dense mean is not worth its memory."""

_AT_ONCE = 32
_BYTES_AT_ONCE = 16 * 2**20
"""Updates, and their size, whose products are summed by one multiplication per layer."""


@dataclass
class ProductError:
    """Sums p_k (B + D_k) (A + E_k) densely beside a rule that averages both factors.

    Only the sum of p_k D_k E_k needs a product per update; the rest is linear in the sums of
    D_k and E_k.

    Attributes:
        shared: The adapter that the sites trained: A and B.
        layout: Which layers carry it.
    """

    shared: SharedAdapter
    layout: AdapterLayout
    _steps: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    """Sums of p_k D_k and p_k E_k by the factor's name, exact, in fixed point."""
    _products: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Sums of p_k D_k E_k by module, to six digits, in squares of fixed point's steps."""
    _weights: dict[Tower, int] = field(default_factory=dict)
    _scale: float = 1.0
    _waiting: list[AdapterUpdate] = field(default_factory=list)
    _bytes: int = 0

    @staticmethod
    def affordable(layout: AdapterLayout) -> bool:
        """Return whether the dense matrices of all layers together are small enough."""
        return sum(layer.outputs * layer.inputs for layer in layout.layers) <= _LARGEST_MATRICES

    def watch(self, updates: Iterable[AdapterUpdate]) -> Iterator[AdapterUpdate]:
        """Yield the updates unchanged and sum up their products."""
        for update in updates:
            self._waiting.append(update)
            self._bytes += sum(delta.nbytes for delta in update.delta.values())
            if len(self._waiting) == _AT_ONCE or self._bytes > _BYTES_AT_ONCE:
                self._add_waiting()
            yield update
        self._add_waiting()

    def relative(self, applied: SharedAdapter) -> float:
        """Return ``||applied - mean|| / ||mean - received||`` over all layers (Frobenius)."""
        error = size = 0.0
        for layer in self.layout.layers:
            if layer.tower not in self._weights:
                continue
            received = _product(self.shared, layer.module)
            change = self._mean_change(layer)
            error += _square(_product(applied, layer.module) - received - change)
            size += _square(change)
        return math.sqrt(error / size) if size else 0.0

    def _mean_change(self, layer: LayerShape) -> NDArray[np.float64]:
        """Return the mean of (B + D_k) (A + E_k) - B A."""
        a, b = (factor_name(layer.module, factor) for factor in ("A", "B"))
        total = np.zeros((layer.outputs, layer.inputs))
        if a in self._steps:
            total += self.shared.factors[b] @ (self._steps[a] / self._scale)
        if b in self._steps:
            total += (self._steps[b] / self._scale) @ self.shared.factors[a]
        if layer.module in self._products:
            total += self._products[layer.module] / self._scale**2
        return total / self._weights[layer.tower]

    def _add_waiting(self) -> None:
        """Add the waiting updates; side by side, their products are one product a layer."""
        updates, self._waiting, self._bytes = self._waiting, [], 0
        for tower in TOWERS:
            having = [update for update in updates if update.weights.get(tower)]
            if having:
                weights = np.array([update.weights[tower] for update in having])
                self._weights[tower] = self._weights.get(tower, 0) + int(weights.sum())
                self._scale = having[0].scale
                for layer in self.layout.layers:
                    if layer.tower == tower:
                        self._add_layer(layer, having, weights)

    def _add_layer(
        self, layer: LayerShape, updates: Sequence[AdapterUpdate], weights: NDArray[np.int64]
    ) -> None:
        a, b = (factor_name(layer.module, factor) for factor in ("A", "B"))
        steps = {
            name: np.stack([update.delta[name].view(np.int32) for update in updates])
            for name in (a, b)
            if name in updates[0].delta
        }
        for name, stack in steps.items():
            if name not in self._steps:
                self._steps[name] = np.zeros(stack.shape[1:], np.int32)
            self._steps[name] += stack.sum(axis=0, dtype=np.int32)  # fits by choose_scale
        if len(steps) == 2:
            # D_1 / w_1, D_2 / w_2, ... side by side, E_1, E_2, ... on top of each other.
            left = np.empty((layer.outputs, len(updates), self.layout.rank), np.float32)
            shares = (1 / weights).astype(np.float32)[:, None]
            np.multiply(steps[b].transpose(1, 0, 2), shares, out=left, casting="same_kind")
            right = steps[a].reshape(-1, layer.inputs).astype(np.float32)
            if layer.module not in self._products:
                self._products[layer.module] = np.zeros((layer.outputs, layer.inputs))
            self._products[layer.module] += left.reshape(layer.outputs, -1) @ right


def _product(shared: SharedAdapter, module: str) -> NDArray[np.float64]:
    a, b = (shared.factors[factor_name(module, factor)] for factor in ("A", "B"))
    product: NDArray[np.float64] = b.astype(np.float64) @ a.astype(np.float64)
    return product


def _square(matrix: NDArray[np.float64]) -> float:
    return float(np.square(matrix).sum())
