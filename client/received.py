"""The shared adapter as it reaches a site: in parts, checked before anything uses it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.state import SiteState
from shared.adapter import (
    Adapter,
    AdapterLayout,
    Factor,
    SharedAdapter,
    adapter_sha256,
    check_compatible,
    factor_name,
    factor_of,
)
from shared.errors import AdapterMismatchError, WireError
from shared.latest import Latest
from shared.messages import Request
from shared.parts import PARTS, Part, join_parts, unpack_parts
from shared.ranks import filled

_NOTHING: Adapter = {}
EMPTY = adapter_sha256(_NOTHING)
"""Digest of a part without factors, which never has to be sent."""

_B_AND_A: tuple[Factor, Factor] = ("B", "A")


_Parts = dict[Part, tuple[str, Adapter]]
"""Digest and factors of parts."""

_came: Latest[_Parts] = Latest()
_joined: Latest[SharedAdapter] = Latest()


def receive_parts(
    request: Request, tensors: Mapping[str, NDArray[np.generic]], state: SiteState
) -> tuple[dict[Part, Adapter], list[Part]]:
    """Return the parts that came with a request or are held, and the names of the missing.

    What came is held from now on.

    Raises:
        WireError: If a part has another digest than the request says.
    """
    came = _came.get((tensors,), lambda: _digested(tensors))
    parts: dict[Part, Adapter] = {}
    for part in PARTS:
        sha256 = request.parts.get(part, EMPTY)
        if part in came:
            digest, adapter = came[part]
            if digest != sha256:
                raise WireError(f"request: part {part} has another digest than was stated")
            state.hold(part, sha256, adapter, request.run)
            parts[part] = adapter
        elif sha256 == EMPTY:
            parts[part] = _NOTHING
        elif (held := state.held(part, sha256)) is not None:
            parts[part] = held
    return parts, [part for part in PARTS if part not in parts]


def join_received(
    request: Request, parts: Mapping[Part, Adapter], layout: AdapterLayout
) -> SharedAdapter:
    """Put the parts of a request's adapter together, once it is known that they fit.

    Sites of one process that receive the same adapter get the same object, checked once.

    Args:
        request: Says how often the adapter was folded.
        parts: All of them, from ``receive_parts``.
        layout: Of the site's own encoder.

    Raises:
        AdapterMismatchError: If names or shapes do not fit, or a value is not finite.
    """

    def join() -> SharedAdapter:
        shared = join_parts(parts, request.folds)
        if request.job.aggregate.shares_features:  # there is no adapter to fit
            return shared
        check_fits(layout.at_rank(_rank_sent(request, shared, layout)), shared)
        factors = filled(shared.factors, layout)
        return shared if factors is shared.factors else replace(shared, factors=factors)

    digests = (request.parts.get(part, EMPTY) for part in PARTS)  # every part has been checked
    features = request.job.aggregate.shares_features
    return _joined.get((*digests, request.folds, layout, features), join)


def _rank_sent(request: Request, shared: SharedAdapter, layout: AdapterLayout) -> int:
    """Return the rank that a site's factors must have: the run's, or the site's if it is smaller.

    Rules that average products send a site in training its own columns only.
    """
    own = request.job.lora.ranks.get(request.site, layout.rank)
    came = {len(array) for name, array in shared.factors.items() if factor_of(name) == "A"}
    return own if request.kind == "train" and came == {own} else layout.rank


def _digested(tensors: Mapping[str, NDArray[np.generic]]) -> _Parts:
    parts = unpack_parts(tensors)
    return {part: (adapter_sha256(adapter), adapter) for part, adapter in parts.items()}


def check_fits(layout: AdapterLayout, shared: SharedAdapter) -> None:
    """Raise unless an encoder with this layout can carry a shared adapter.

    Raises:
        AdapterMismatchError: If names or shapes do not fit, or a value is not finite.
    """
    check_compatible(layout, shared.factors, layout.names())
    _check_residual(layout, shared.residual)
    for name, array in (*shared.factors.items(), *shared.residual.items()):
        if not np.isfinite(array).all():
            raise AdapterMismatchError(f"{name}: not finite")


def _check_residual(layout: AdapterLayout, residual: Adapter) -> None:
    """Check folded products: both factors of a layer, of any common rank."""
    unknown = set(residual) - set(layout.names())
    if unknown:
        raise AdapterMismatchError(f"residual: {min(unknown)} is not in the base's layout")
    for layer in layout.layers:
        b, a = (residual.get(factor_name(layer.module, factor)) for factor in _B_AND_A)
        if b is None and a is None:
            continue
        if b is None or a is None or b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise AdapterMismatchError(f"residual of {layer.module}: its factors do not pair")
        if (b.shape[0], a.shape[1]) != (layer.outputs, layer.inputs):
            raise AdapterMismatchError(f"residual of {layer.module}: does not fit the base")
