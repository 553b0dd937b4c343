"""The adapters of a cohort as one matrix: a row per site, trained side by side.

Every factor is a view of the matrix, so that the optimiser, clipping and norms work on whole
rows, and one site's row never touches another's.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.adapter import TOWERS, Adapter, AdapterLayout, Array, Factor, Tower, factor_name
from shared.errors import AdapterMismatchError

# A factor's rows lie apart in the matrix, and so do its gradient's. torch says so once; at the
# size of adapters it costs nothing.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")


@dataclass(frozen=True)
class StackedFactor:
    """One factor of one layer: where it lies in a row, and its shape."""

    name: str
    module: str
    factor: Factor
    tower: Tower
    start: int
    stop: int
    shape: tuple[int, int]


class AdapterStack:
    """K adapters of one layout, as rows of a float32 matrix.

    Factors lie in a row by tower and then by kind, so that what a phase trains of a tower is
    one slice.

    Attributes:
        values: (K, p) the adapters.
        gradients: (K, p) filled by the backward pass for factors that are trained.
        factors: Where every factor lies.
        rank: Of all adapters in the stack.
    """

    def __init__(
        self, layout: AdapterLayout, count: int, device: torch.device, rank: int | None = None
    ) -> None:
        """Make room for adapters that change nothing: all zeros.

        Args:
            layout: Which layers.
            count: K.
            device: Where the rows lie.
            rank: The layout's own if not given.
        """
        self.rank = layout.rank if rank is None else rank
        self.factors: dict[str, StackedFactor] = {}
        start = 0
        for tower in TOWERS:
            for factor in ("A", "B"):
                for layer in layout.layers:
                    if layer.tower == tower:
                        shape = (
                            (self.rank, layer.inputs)
                            if factor == "A"
                            else (layer.outputs, self.rank)
                        )
                        name, stop = factor_name(layer.module, factor), start + shape[0] * shape[1]
                        self.factors[name] = StackedFactor(
                            name, layer.module, factor, tower, start, stop, shape
                        )
                        start = stop
        self.values = torch.zeros(count, start, device=device)
        self.gradients = torch.zeros(0, device=device)
        self._views = {name: self._view(self.values, f) for name, f in self.factors.items()}

    def __len__(self) -> int:
        return len(self.values)

    def view(self, name: str) -> Tensor:
        """Return a factor of all adapters, (K, *shape), sharing memory with ``values``."""
        return self._views[name]

    def put(self, row: int, adapter: Adapter) -> None:
        """Copy an adapter into a row; factors that it does not have are zero.

        Raises:
            AdapterMismatchError: If a factor does not fit.
        """
        flat = np.zeros(self.values.shape[1], dtype=np.float32)
        for name, array in adapter.items():
            factor = self.factors.get(name)
            if factor is None or factor.shape != array.shape:
                raise AdapterMismatchError(
                    f"{name}: does not fit the base's adapters of rank {self.rank}"
                )
            flat[factor.start : factor.stop] = array.reshape(-1)
        self.values[row].copy_(torch.from_numpy(flat))

    def read(
        self,
        row: int,
        factors: Iterable[Factor] = ("A", "B"),
        towers: Iterable[Tower] = TOWERS,
    ) -> dict[str, Array]:
        """Return a copy of a row's factors as float32 arrays, by PEFT's name."""
        kinds, wanted = set(factors), set(towers)
        flat = self.values[row].to("cpu", torch.float32, copy=True).numpy()
        return {
            name: flat[f.start : f.stop].reshape(f.shape)
            for name, f in self.factors.items()
            if f.factor in kinds and f.tower in wanted
        }

    def slices(
        self, factors: Iterable[Factor], towers: Iterable[Tower]
    ) -> list[tuple[Tower, slice]]:
        """Return the columns of the given kinds and towers, joined where they touch."""
        kinds, wanted = set(factors), set(towers)
        found: list[tuple[Tower, slice]] = []
        for f in self.factors.values():
            if f.factor in kinds and f.tower in wanted:
                if found and found[-1][0] == f.tower and found[-1][1].stop == f.start:
                    found[-1] = (f.tower, slice(found[-1][1].start, f.stop))
                else:
                    found.append((f.tower, slice(f.start, f.stop)))
        return found

    def beyond(self, ranks: Sequence[int]) -> Tensor | None:
        """Return which numbers lie beyond each row's own rank, (K, p); ``None`` if none does.

        Args:
            ranks: Per row; its first columns of B and rows of A are within.
        """
        if all(rank >= self.rank for rank in ranks):
            return None
        mask = torch.zeros(self.values.shape, dtype=torch.bool)
        for f in self.factors.values():
            part = self._view(mask, f)
            for row, rank in enumerate(ranks):
                (part[row, rank:] if f.factor == "A" else part[row, :, rank:]).fill_(True)
        return mask.to(self.values.device)

    def train(self, factors: Sequence[Factor]) -> None:
        """Let gradients of these kinds of factors flow into ``gradients``; of others none."""
        self.gradients = torch.zeros_like(self.values) if factors else self.gradients[:0]
        for name, f in self.factors.items():
            leaf = self._views[name]
            leaf.requires_grad_(f.factor in factors)
            leaf.grad = self._view(self.gradients, f) if f.factor in factors else None

    @staticmethod
    def _view(matrix: Tensor, factor: StackedFactor) -> Tensor:
        part = matrix[:, factor.start : factor.stop]
        return part.view(len(matrix), *factor.shape).detach()


def stack_of(
    layout: AdapterLayout, adapters: Sequence[Mapping[str, Array]], device: torch.device, rank: int
) -> AdapterStack:
    """Return a stack that holds some adapters."""
    stack = AdapterStack(layout, len(adapters), device, rank)
    for row, adapter in enumerate(adapters):
        stack.put(row, adapter)
    return stack
