"""LoRA for a whole cohort: many low-rank adapters side by side on one frozen linear layer.

Hu et al., 2021, https://arxiv.org/abs/2106.09685, for K sites at once:
``y_i = x_i W^T + b + s_k (x_i A_k^T) B_k^T`` for every row i that belongs to site k. The frozen
product is one large matrix product for all sites; the low-rank ones are batched over sites.
The backward pass keeps no more than the layer's input and the (rows, r) projections, and
computes no gradient of what is frozen.

How many rows belong to which adapter is the same for all layers of an encoder: ``Rows``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.adapter import AdapterLayout, LayerShape
from shared.config import LoraConfig
from shared.errors import ConfigError
from shared.model.targets import find_targets, tower_of_module

Index = slice | Tensor


@dataclass(frozen=True)
class Run:
    """Neighbouring samples of adapters that have equally many each.

    Attributes:
        adapters: Which of the stack, in the order of the samples.
        count: How many adapters.
        start: First sample.
        each: Samples per adapter.
    """

    adapters: Index
    count: int
    start: int
    each: int


class Rows:
    """Which samples of the batch at hand belong to which adapter of the stack.

    All adapted layers of an encoder hold the same object; the encoder sets it per batch.
    """

    def __init__(self) -> None:
        self.runs: tuple[Run, ...] = ()

    def arrange(self, counts: Sequence[int]) -> Tensor | None:
        """Group samples that come in the order of their adapters.

        Args:
            counts: Samples per adapter of the stack; 0 for adapters that take no part.

        Returns:
            The order in which the samples must be given to the layers; ``None`` if it is the
            one they have. Adapters with equally many samples then lie together, so that every
            layer needs one batched product per distinct count and no padding.
        """
        present = [number for number, count in enumerate(counts) if count]
        sorted_ = sorted(present, key=lambda number: -counts[number])
        runs: list[Run] = []
        start = first = 0
        while first < len(sorted_):
            each = counts[sorted_[first]]
            last = first
            while last < len(sorted_) and counts[sorted_[last]] == each:
                last += 1
            chosen = sorted_[first:last]
            runs.append(Run(_as_slice(chosen), len(chosen), start, each))
            start += each * len(chosen)
            first = last
        self.runs = tuple(runs)
        if sorted_ == present:
            return None
        begins = [0]
        for count in counts:
            begins.append(begins[-1] + count)
        return torch.cat([torch.arange(begins[n], begins[n + 1]) for n in sorted_])


def _as_slice(numbers: Sequence[int]) -> Index:
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers)


@dataclass(frozen=True)
class LowRank:
    """The factors of one layer for every adapter of a stack.

    Attributes:
        a: (K, r, n) float32.
        b: (K, m, r) float32.
        scale: s, times the mixing weight if there is one: a number, or (K, 1, 1).
    """

    a: Tensor
    b: Tensor
    scale: float | Tensor


class AdaptedLinear(nn.Module):
    """A frozen linear layer that carries adapters; its weight is never written to.

    Attributes:
        frozen: The base's layer.
        in_use: (m, n) weight of the common part of the function: the frozen one, or with
            adapters merged in that all rows have in common.
        low_rank: What every adapter of the stack adds; ``None`` if there is no stack.
        rows: Shared by all adapted layers.
    """

    def __init__(self, frozen: nn.Linear, rows: Rows) -> None:
        super().__init__()
        self.frozen = frozen
        self.rows = rows
        self.in_use: Tensor | None = None
        self.low_rank: LowRank | None = None

    @property
    def weight(self) -> Tensor:
        """(m, n) weight of the common part."""
        return self.frozen.weight if self.in_use is None else self.in_use

    @property
    def bias(self) -> Tensor | None:
        """(m,) bias."""
        return cast("Tensor | None", self.frozen.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted layer's output, shape (..., m) for an input (..., n)."""
        return project(x, [self], self.weight, self.bias)


def project(x: Tensor, layers: Sequence[nn.Module], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply layers that read the same input as one product, shape (..., sum of their m).

    Args:
        x: (samples, ..., n).
        layers: Linear layers, adapted or not, in the order of their rows in ``weight``.
        weight: Their weights, one above the other.
        bias: Their biases, or ``None``.
    """
    columns, parts, factors = 0, [], []
    runs: tuple[Run, ...] = ()
    for layer in layers:
        outputs = len(cast("Tensor", layer.weight))
        if isinstance(layer, AdaptedLinear) and layer.low_rank is not None:
            parts.append(_Part(layer.low_rank.scale, columns, columns + outputs))
            factors += [layer.low_rank.a, layer.low_rank.b]
            runs = layer.rows.runs
        columns += outputs
    if not parts:
        return nn.functional.linear(x, weight, bias)
    product = _CohortProduct.apply(x, weight, bias, runs, tuple(parts), *factors)  # type: ignore[no-untyped-call]
    return cast("Tensor", product)


@dataclass(frozen=True)
class _Part:
    """Which columns of a product a low-rank term is added to, and how much of it."""

    scale: float | Tensor
    start: int
    stop: int


class _CohortProduct(torch.autograd.Function):
    """``x W^T + b`` plus the low-rank terms of every row's own adapter."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        runs: tuple[Run, ...],
        parts: tuple[_Part, ...],
        *factors: Tensor,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        per_sample = len(rows) // max(1, len(x))
        output = nn.functional.linear(rows, weight, bias)
        a = torch.cat(factors[0::2], dim=1).to(rows.dtype)  # (K, parts r, n)
        b = [(f * p.scale).to(rows.dtype) for f, p in zip(factors[1::2], parts, strict=True)]
        lows = []
        for run in runs:
            inside, own = _split(rows, run, per_sample), _split(output, run, per_sample)
            low = torch.bmm(inside, a[run.adapters].mT)
            for part, factor, mine in zip(parts, b, _ranks(low, parts, factors), strict=True):
                own[:, :, part.start : part.stop].baddbmm_(mine, factor[run.adapters].mT)
            lows.append(low)
        ctx.save_for_backward(x, weight, a, *b, *lows)
        ctx.runs, ctx.parts, ctx.ranks = runs, parts, [f.shape[1] for f in factors[0::2]]
        ctx.types = [f.dtype for f in factors]
        return output.view(*x.shape[:-1], output.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, a, *rest = ctx.saved_tensors
        parts, runs = ctx.parts, ctx.runs
        b, lows = rest[: len(parts)], rest[len(parts) :]
        outer = gradient.reshape(-1, gradient.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        per_sample = len(rows) // max(1, len(x))
        for_x = outer @ weight if ctx.needs_input_grad[0] else None
        for_a = torch.zeros_like(a)
        for_b = [torch.zeros_like(factor) for factor in b]
        wanted = ctx.needs_input_grad[5:]
        for run, low in zip(runs, lows, strict=True):
            outside = _split(outer, run, per_sample)
            inner = torch.empty_like(low)
            at = 0
            for number, (part, rank) in enumerate(zip(parts, ctx.ranks, strict=True)):
                mine = outside[:, :, part.start : part.stop]
                inner[:, :, at : at + rank] = torch.bmm(mine, b[number][run.adapters])
                if wanted[2 * number + 1]:
                    for_b[number][run.adapters] = torch.bmm(mine.mT, low[:, :, at : at + rank])
                at += rank
            if any(wanted[0::2]):
                for_a[run.adapters] = torch.bmm(inner.mT, _split(rows, run, per_sample))
            if for_x is not None:
                _split(for_x, run, per_sample).baddbmm_(inner, a[run.adapters])
        grads: list[Tensor | None] = []
        for number, mine in enumerate(for_a.split(ctx.ranks, dim=1)):
            grads.append(mine.to(ctx.types[2 * number]) if wanted[2 * number] else None)
            other = 2 * number + 1
            grads.append(
                for_b[number].to(ctx.types[other]) * parts[number].scale if wanted[other] else None
            )
        return (for_x.view_as(x) if for_x is not None else None, None, None, None, None, *grads)


def _split(rows: Tensor, run: Run, per_sample: int) -> Tensor:
    """Return the rows of a run as a view, (adapters, rows of each, width)."""
    first = run.start * per_sample
    last = first + run.count * run.each * per_sample
    return rows[first:last].view(run.count, run.each * per_sample, rows.shape[-1])


def _ranks(low: Tensor, parts: Sequence[_Part], factors: Sequence[Tensor]) -> list[Tensor]:
    return list(low.split([factor.shape[1] for factor in factors[0 : 2 * len(parts) : 2]], dim=2))


def inject(
    model: nn.Module, config: LoraConfig, rows: Rows
) -> tuple[AdapterLayout, dict[str, AdaptedLinear]]:
    """Put adapted layers in the place of the base's linear layers; nothing is trainable then.

    Args:
        model: The base, changed in place.
        config: Targets, layers, rank and scaling.
        rows: Which all adapted layers are to share.

    Returns:
        The layout, and the adapted layers by module path in the layout's order.

    Raises:
        ConfigError: A target that is not in the base, a rank larger than a layer, or a scaling
            that is not finite.
    """
    if not math.isfinite(config.scaling):
        raise ConfigError(f"lora.alpha = {config.alpha}: expected a finite number")
    model.requires_grad_(requires_grad=False)
    adapted: dict[str, AdaptedLinear] = {}
    for path in find_targets(model, config.targets, config.layers):
        parent, _, name = path.rpartition(".")
        adapted[path] = AdaptedLinear(cast("nn.Linear", model.get_submodule(path)), rows)
        setattr(model.get_submodule(parent), name, adapted[path])
    shapes = tuple(
        LayerShape(path, tower_of_module(path), *layer.frozen.weight.shape)
        for path, layer in adapted.items()
    )
    layout = AdapterLayout(shapes, config.rank, config.scaling)
    if config.rank > layout.largest_rank:
        raise ConfigError(
            f"lora.rank = {config.rank} is larger than the smallest adapted layer of this base; "
            f"expected at most {layout.largest_rank}"
        )
    return layout, adapted
