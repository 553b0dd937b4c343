"""Adapters: named LoRA factors, and what the federation shares of them. NumPy only.

A linear layer W0 of shape (m, n) is adapted to ``W0 + s (residual) + s B A`` with
B of shape (m, r), A of shape (r, n) and s = alpha / r (Hu et al., 2021). Names are PEFT's:
``base_model.model.<module path>.lora_A.weight`` and ``….lora_B.weight``.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shared.errors import AdapterMismatchError

Array = NDArray[np.float32]
Adapter = Mapping[str, Array]
"""Factors by PEFT's name, float32, C-contiguous."""

Factor = Literal["A", "B"]
Tower = Literal["image", "text"]
FACTORS: tuple[Factor, ...] = get_args(Factor)
TOWERS: tuple[Tower, ...] = get_args(Tower)

_SUFFIX: dict[Factor, str] = {"A": ".lora_A.weight", "B": ".lora_B.weight"}


@dataclass(frozen=True)
class LayerShape:
    """One adapted linear layer: its module path, tower and size (m outputs, n inputs)."""

    module: str
    tower: Tower
    outputs: int
    inputs: int


@dataclass(frozen=True)
class AdapterLayout:
    """Which layers of a base carry an adapter; fixed for a run by base and ``[lora]``."""

    layers: tuple[LayerShape, ...]
    rank: int
    scaling: float

    def at_rank(self, rank: int) -> "AdapterLayout":
        """Return the layout of the first ``rank`` columns; the scaling stays that of the run."""
        return self if rank == self.rank else _at_rank(self, rank)

    def tower_of(self, name: str) -> Tower:
        """Return the tower that a factor belongs to."""
        return self.towers[name]

    @property
    def largest_rank(self) -> int:
        """The rank beyond which the smallest layer's product gains nothing."""
        return min(min(layer.outputs, layer.inputs) for layer in self.layers)

    def names(self, factors: Iterable[Factor] = ("A", "B")) -> list[str]:
        """Return the names of all factors of the given sort, in layer order."""
        return [factor_name(layer.module, f) for layer in self.layers for f in factors]

    def entries(
        self, factors: Iterable[Factor] = ("A", "B"), towers: Iterable[Tower] = TOWERS
    ) -> int:
        """Return how many numbers the factors of the given sort have, in the given towers."""
        within = set(towers)
        return sum(
            math.prod(self.shapes[name])
            for name in self.names(factors)
            if self.towers[name] in within
        )

    def shape_of(self, name: str) -> tuple[int, int]:
        """Return the shape of a factor: (r, n) for A, (m, r) for B."""
        return self.shapes[name]

    @cached_property
    def towers(self) -> Mapping[str, Tower]:
        """The tower of every factor by name; asked for hundreds of times per message."""
        return {factor_name(layer.module, f): layer.tower for layer in self.layers for f in _SUFFIX}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """The shape of every factor by name."""
        shapes = {
            factor_name(layer.module, "A"): (self.rank, layer.inputs) for layer in self.layers
        }
        return shapes | {
            factor_name(layer.module, "B"): (layer.outputs, self.rank) for layer in self.layers
        }

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of all layers; worked out once, because what follows from a layout is remembered."""
        return hash((self.layers, self.rank, self.scaling))


@lru_cache(maxsize=64)
def _at_rank(layout: AdapterLayout, rank: int) -> AdapterLayout:
    return replace(layout, rank=rank)


@dataclass(frozen=True)
class SharedAdapter:
    """What the federation shares: enough to rebuild its function on the base.

    Its arrays must not be changed: digests are worked out once.

    Attributes:
        factors: The current A and B of every layer.
        residual: Folded products, as factors of any rank; empty before the first fold.
            Names as in ``factors``, so B_res A_res is added to B A of the same layer.
        folds: How often the adapter was folded into the residual (the base's version).
        state: What the rule remembers from round to round. It stays at the server and is no
            part of the function, so no digest has it.
        features: Where sites exchange features of public pairs there are no factors: (N, d) by
            tower, L2-normalised.
    """

    factors: Adapter
    residual: Adapter = field(default_factory=dict)
    folds: int = 0
    state: Adapter = field(default_factory=dict)
    features: Adapter = field(default_factory=dict)

    def sha256(self) -> str:
        """Return the digest of all names, shapes and bits."""
        return self._sha256

    @cached_property
    def residual_sha256(self) -> str:
        """Digest of the residual; adapters with one residual train on one merged base."""
        return adapter_sha256(self.residual)

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256(str(self.folds).encode())
        digest.update(adapter_sha256(self.factors).encode())
        digest.update(self.residual_sha256.encode())
        if self.features:
            digest.update(adapter_sha256(self.features).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class AdapterUpdate:
    """What one site sends after a round, still in fixed point (see ``shared.fixedpoint``).

    Attributes:
        site: Name of the site.
        weights: Integer weight per tower that the site trained; others are absent.
        delta: ``weight * change`` of the phase's factors, two's complement in uint32, only
            for towers in ``weights``.
        scale: Fixed-point steps per unit, a power of two, common to the round.
        metrics: Released numbers, by name.
        features: In an exchange of features, in place of a change: (N, d) by tower.
        rank: Columns of the shared adapter that the site was sent, if not all of them.
    """

    site: str
    weights: Mapping[Tower, int]
    delta: Mapping[str, NDArray[np.uint32]]
    scale: float
    metrics: Mapping[str, float]
    features: Mapping[Tower, NDArray[np.float16]] = field(default_factory=dict)
    rank: int | None = None


def factor_name(module: str, factor: Factor) -> str:
    """Return PEFT's name of a factor of a module of the base."""
    return f"base_model.model.{module}{_SUFFIX[factor]}"


def factor_of(name: str) -> Factor:
    """Return which factor a name denotes."""
    for factor, suffix in _SUFFIX.items():
        if name.endswith(suffix):
            return factor
    raise AdapterMismatchError(f"{name}: not the name of a LoRA factor (….lora_A.weight)")


def module_of(name: str) -> str:
    """Return the module path that a factor adapts."""
    return name.removeprefix("base_model.model.").removesuffix(_SUFFIX[factor_of(name)])


def pairs(adapter: Adapter) -> Iterator[tuple[str, Array, Array]]:
    """Yield (module path, B, A) for every layer of an adapter."""
    for name, a in adapter.items():
        if factor_of(name) == "A":
            module = module_of(name)
            yield module, adapter[factor_name(module, "B")], a


def products(adapter: Adapter) -> dict[str, Array]:
    """Return B A of every layer, shape (m, n), without the scaling s."""
    return {module: b @ a for module, b, a in pairs(adapter)}


def check_compatible(
    layout: AdapterLayout, adapter: Mapping[str, NDArray[np.generic]], names: Iterable[str]
) -> None:
    """Raise unless an adapter holds exactly ``names``, with the layout's shapes.

    Raises:
        AdapterMismatchError: Naming the first factor that does not fit.
    """
    wanted = list(names)
    shapes = layout.shapes
    for name in wanted:
        if name not in adapter:
            raise AdapterMismatchError(f"{name}: missing")
        if adapter[name].shape != shapes[name]:
            raise AdapterMismatchError(
                f"{name}: expected shape {shapes[name]}, got {adapter[name].shape}"
            )
    extra = set(adapter) - set(wanted)
    if extra:
        raise AdapterMismatchError(f"{min(extra)}: not expected in this message")


def adapter_sha256(adapter: Mapping[str, NDArray[np.generic]]) -> str:
    """Return the digest of names, shapes, types and bits, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        array = np.ascontiguousarray(adapter[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
