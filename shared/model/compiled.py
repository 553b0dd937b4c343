"""``model.compile``: what lies between the matrix products of a layer, compiled by torch.

Matrix products are the libraries' business already. Between them are norms and activations,
which inductor turns into one pass each, forward and backward. Compiling whole towers was tried
and is no way to go: on a 2-core CPU it took 126 s, 93 s more for another number of sites, and a
step then took 1.04 times as long as without.

It is off unless a job asks for it: on CPUs it did not pay (docs/performance.md), and on GPUs it
was never measured. It changes results by rounding, so it is part of a job's digest.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from shared.errors import ConfigError

_PLACES = ("layer_norm1", "layer_norm2")


def compile_between_products(model: Any, device: torch.device) -> None:  # noqa: ANN401 - a CLIPModel
    """Put compiled norms and activations into every layer of both towers.

    Shapes are dynamic: neither a longer text nor another number of sites compiles anew.

    Args:
        model: A plain CLIP, changed in place.
        device: Where it lies.

    Raises:
        ConfigError: If this machine has not what compiling needs.
    """
    # Tell inductor too, which is slow to load, what torch has been told of repeatability.
    torch.use_deterministic_algorithms(
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    _try_out(device)
    norm = cast("Callable[..., Tensor]", torch.compile(_norm, dynamic=True))
    activations: dict[str, Callable[[Tensor], Tensor]] = {}
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            for place in _PLACES:
                setattr(layer, place, _Norm(getattr(layer, place), norm))
            own = layer.mlp.activation_fn
            name = type(own).__name__
            if name not in activations:
                activations[name] = torch.compile(own.forward, dynamic=True)
            layer.mlp.activation_fn = _Activation(activations[name])


def _try_out(device: torch.device) -> None:
    """Compile next to nothing: what is missing then is told in one sentence."""
    try:
        torch.compile(_twice, dynamic=True)(torch.ones(4, device=device))
    except Exception as error:  # a backend's errors have no type in common
        cause = getattr(error, "inner_exception", None) or error
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "triton and a C compiler"
        raise ConfigError(
            f"model.compile = true: torch cannot compile here ({type(cause).__name__}); install "
            f"{needed} and Python's header files, or leave model.compile out"
        ) from None


def _twice(x: Tensor) -> Tensor:
    return x * 2


def _norm(rows: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return nn.functional.layer_norm(rows, weight.shape, weight, bias, epsilon)


class _Norm(nn.Module):
    """A layer norm, (..., d); always given as rows, so that one kernel serves all shapes."""

    def __init__(self, frozen: nn.LayerNorm, compiled: Callable[..., Tensor]) -> None:
        super().__init__()
        self.frozen, self._compiled = frozen, compiled

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised rows."""
        own = self.frozen
        rows = x.reshape(-1, x.shape[-1])
        return self._compiled(rows, own.weight, own.bias, own.eps).view_as(x)


class _Activation(nn.Module):
    """An activation, (..., d), given as rows."""

    def __init__(self, compiled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._compiled = compiled

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of every element."""
        return self._compiled(x.reshape(-1, x.shape[-1])).view_as(x)
