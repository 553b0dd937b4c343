"""The pieces in which a shared adapter travels, and how they are put together again."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shared.adapter import Adapter, Array, SharedAdapter, adapter_sha256, factor_of
from shared.errors import WireError
from shared.tensors import Tensors

Part = Literal["A", "B", "residual", "features"]
PARTS: tuple[Part, ...] = get_args(Part)
"""A part is sent only if it changed."""


def parts_of(shared: SharedAdapter) -> dict[Part, Adapter]:
    """Cut a shared adapter into the parts that travel; a part may be empty."""
    factors: dict[Part, dict[str, Array]] = {"A": {}, "B": {}}
    for name, array in shared.factors.items():
        factors[factor_of(name)][name] = array
    parts: dict[Part, Adapter] = {**factors, "residual": shared.residual}
    return parts | {"features": shared.features} if shared.features else parts


def part_digests(shared: SharedAdapter) -> dict[Part, str]:
    """Return the digest of every part, as ``Request.parts`` states it."""
    return {part: adapter_sha256(adapter) for part, adapter in parts_of(shared).items()}


def pack_parts(shared: SharedAdapter, wanted: Iterable[Part] = PARTS) -> Tensors:
    """Return the tensors of the wanted parts, named ``A/<name>``, ``residual/<name>``, ..."""
    parts = parts_of(shared)
    return {f"{part}/{name}": a for part in wanted for name, a in parts.get(part, {}).items()}


def unpack_parts(tensors: Mapping[str, NDArray[np.generic]]) -> dict[Part, dict[str, Array]]:
    """Return the parts that came with a request.

    Raises:
        WireError: If a tensor belongs to no part, or is not float32.
    """
    parts: dict[Part, dict[str, Array]] = {}
    known: dict[str, Part] = {part: part for part in PARTS}
    for key, array in tensors.items():
        part, _, name = key.partition("/")
        if part not in known or not name:
            raise WireError(f"request: tensor {key[:80]!r} is not named <part>/<factor>")
        if array.dtype != np.float32:
            raise WireError(f"request: tensor {key[:80]!r} is {array.dtype}, expected float32")
        parts.setdefault(known[part], {})[name] = array.astype(np.float32, copy=False)
    return parts


def join_parts(parts: Mapping[Part, Adapter], folds: int) -> SharedAdapter:
    """Put a shared adapter together again; the factors come in order A, B of every layer."""
    names = sorted({**parts["A"], **parts["B"]})
    factors = {**parts["A"], **parts["B"]}
    return SharedAdapter(
        {name: factors[name] for name in names},
        parts["residual"],
        folds,
        features=parts.get("features", {}),
    )
