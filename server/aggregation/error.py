"""How far the adapter that was applied is from the mean of what the sites trained."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    LayerShape,
    SharedAdapter,
    Tower,
    factor_name,
)
from shared.tensors import Form, Packed, Place, side_by_side

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
    _steps: dict[Form, NDArray[np.int32]] = field(default_factory=dict)
    """Sums of p_k D_k and p_k E_k by the form of the updates, exact, in fixed point."""
    _products: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Sums of p_k D_k E_k by module, to six digits, in squares of fixed point's steps."""
    _weights: dict[Tower, int] = field(default_factory=dict)
    _lacking: dict[tuple[Tower, int], int] = field(default_factory=dict)
    """Weights of the sites that were sent the first columns only, by how many."""
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
            self._bytes += side_by_side(update.delta).form.size
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
            moved = _product(applied, layer.module) - received
            if applied.residual is not self.shared.residual:
                moved += _folded(applied, layer) - _folded(self.shared, layer)
            error += _square(moved - change)
            size += _square(change)
        return math.sqrt(error / size) if size else 0.0

    def _mean_change(self, layer: LayerShape) -> NDArray[np.float64]:
        """Return the mean of (B + D_k) (A + E_k) - B A."""
        a, b = (factor_name(layer.module, factor) for factor in ("A", "B"))
        total = np.zeros((layer.outputs, layer.inputs))
        for form, numbers in self._steps.items():
            steps = Packed(form, numbers)
            if a in steps:
                total += self.shared.factors[b] @ (steps[a].view(np.int32) / self._scale)
            if b in steps:
                total += (steps[b].view(np.int32) / self._scale) @ self.shared.factors[a]
        if layer.module in self._products:
            total += self._products[layer.module] / self._scale**2
        for (tower, rank), weight in self._lacking.items():
            if tower == layer.tower:
                left, right = self.shared.factors[b][:, rank:], self.shared.factors[a][rank:]
                total -= weight * (left.astype(np.float64) @ right.astype(np.float64))
        return total / self._weights[layer.tower]

    def _add_waiting(self) -> None:
        """Add the waiting updates; side by side, their products are one product a layer."""
        updates, self._waiting, self._bytes = self._waiting, [], 0
        of_form: dict[Form, list[AdapterUpdate]] = {}
        for update in updates:
            self._scale = update.scale
            for tower, weight in update.weights.items():
                self._weights[tower] = self._weights.get(tower, 0) + weight
                if update.rank is not None:
                    key = tower, update.rank
                    self._lacking[key] = self._lacking.get(key, 0) + weight
            of_form.setdefault(side_by_side(update.delta).form, []).append(update)
        for form, alike in of_form.items():
            steps = np.stack([side_by_side(u.delta).numbers(np.int32) for u in alike])
            if form not in self._steps:
                self._steps[form] = np.zeros(steps.shape[1:], np.int32)
            self._steps[form] += steps.sum(axis=0, dtype=np.int32)  # fits by choose_scale
            for layer in self.layout.layers:
                names = [factor_name(layer.module, factor) for factor in ("A", "B")]
                if all(name in form.by_name for name in names):
                    weights = np.array([u.weights[layer.tower] for u in alike], np.float32)
                    e, d = (_of(steps, form.by_name[name]) for name in names)
                    self._add_products(layer, d, e, weights)

    def _add_products(
        self,
        layer: LayerShape,
        d: NDArray[np.int32],
        e: NDArray[np.int32],
        weights: NDArray[np.float32],
    ) -> None:
        """Add the sum of p_k D_k E_k; ``d`` is (k, m, r) and ``e`` (k, r, n), times p_k."""
        count, outputs, rank = d.shape
        left = np.empty((outputs, count, rank), np.float32)
        np.divide(d.transpose(1, 0, 2), weights[:, None], out=left, casting="same_kind")
        right = e.astype(np.float32).reshape(count * rank, -1)
        if layer.module not in self._products:
            self._products[layer.module] = np.zeros((outputs, right.shape[1]))
        self._products[layer.module] += left.reshape(outputs, -1) @ right


def _of(steps: NDArray[np.int32], place: Place) -> NDArray[np.int32]:
    """Return one factor of all updates, (k, ...), from their numbers, (k, all)."""
    start = place.offset // steps.itemsize
    return steps[:, start : start + place.entries].reshape(-1, *place.shape)


def _product(shared: SharedAdapter, module: str) -> NDArray[np.float64]:
    a, b = (shared.factors[factor_name(module, factor)] for factor in ("A", "B"))
    product: NDArray[np.float64] = b.astype(np.float64) @ a.astype(np.float64)
    return product


def _folded(shared: SharedAdapter, layer: LayerShape) -> NDArray[np.float64]:
    """Return a layer's product in the residual; zero if there is none yet."""
    if factor_name(layer.module, "A") not in shared.residual:
        return np.zeros((layer.outputs, layer.inputs))
    return _product(SharedAdapter(shared.residual), layer.module)


def _square(matrix: NDArray[np.float64]) -> float:
    return float(np.square(matrix).sum())
