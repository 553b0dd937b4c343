"""CLIP's towers, written for many small batches; the same function as transformers', faster.

CLIP pools one position: the class token of a picture, the end token of a text. In the last
layer only that position needs a query, an output projection and an MLP; keys and values still
come from all. Queries, keys and values are one product, and QuickGELU is computed so that it
costs one pass backward. Any other family goes through transformers' own forward.

Below the first layer that carries an adapter nothing depends on training: ``image_prefix`` and
``text_prefix`` are that part, ``image_features`` and ``text_features`` can start after it.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.adapter import Tower
from shared.model.attention import attend
from shared.model.lora import AdaptedLinear, project

_QUICK = 1.702


def applies_to(model: nn.Module) -> bool:
    """Whether the model is a plain CLIP of transformers."""
    from transformers import CLIPModel  # noqa: PLC0415 - takes a second

    return type(model) is CLIPModel


def frozen_layers(model: Any, tower: Tower) -> int:  # noqa: ANN401 - a CLIPModel
    """Return how many layers of a tower lie below the first that carries an adapter."""
    layers = (model.vision_model if tower == "image" else model.text_model).encoder.layers
    for number, layer in enumerate(layers):
        if any(isinstance(module, AdaptedLinear) for module in layer.modules()):
            return number
    return len(layers)


def keep_precise(model: Any) -> None:  # noqa: ANN401 - a CLIPModel
    """Have everything after pooling in float32, whatever the rest is in.

    Features of records are much alike; rounded there, their differences would be lost. It is
    one row per record, and costs nothing.
    """
    for module in (
        model.vision_model.post_layernorm,
        model.visual_projection,
        model.text_model.final_layer_norm,
        model.text_projection,
    ):
        module.float()


@torch.no_grad()
def image_prefix(model: Any, values: Tensor, depth: int = 0) -> Tensor:  # noqa: ANN401 - a CLIPModel
    """Return what layer ``depth`` gets, (b, t, d), of pixel values (b, 3, h, w).

    After the last layer only the pooled position is left: t is 1 then.
    """
    tower = model.vision_model
    layers = tower.encoder.layers
    hidden: Tensor = tower.pre_layrnorm(tower.embeddings(values))
    if depth < len(layers):
        return _through(layers[:depth], hidden, causal=False)
    hidden = _through(layers[:-1], hidden, causal=False)
    return _at_one_position(layers[-1], hidden, _first(hidden), None)[:, None]


def image_features(model: Any, hidden: Tensor, depth: int = 0) -> Tensor:  # noqa: ANN401 - a CLIPModel
    """Return projected features (b, d), not normalised, of what ``image_prefix`` returned."""
    tower = model.vision_model
    pooled = hidden[:, 0]
    if depth < len(tower.encoder.layers):
        *earlier, last = tower.encoder.layers[depth:]
        hidden = _through(earlier, hidden, causal=False)
        pooled = _at_one_position(last, hidden, _first(hidden), None)
    features: Tensor = model.visual_projection(tower.post_layernorm(pooled.float()))
    return features


@torch.no_grad()
def text_prefix(model: Any, ids: Tensor, depth: int = 0) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - a CLIPModel
    """Return what layer ``depth`` gets, (b, t, d), of token ids (b, t), and where texts end, (b,).

    After the last layer only the pooled position is left: t is 1 then.
    """
    tower = model.text_model
    layers = tower.encoder.layers
    hidden: Tensor = tower.embeddings(input_ids=ids)
    place = _end_of(model, ids)
    if depth < len(layers):
        return _through(layers[:depth], hidden, causal=True), place
    hidden = _through(layers[:-1], hidden, causal=True)
    pooled = _at_one_position(layers[-1], hidden, place, _seen(hidden, place))
    return pooled[:, None], torch.zeros_like(place)


def text_features(model: Any, hidden: Tensor, place: Tensor, depth: int = 0) -> Tensor:  # noqa: ANN401 - a CLIPModel
    """Return projected features (b, d), not normalised, of what ``text_prefix`` returned.

    The tower is causal, so what is padded after the end token is never looked at.

    Args:
        model: The base.
        hidden: (b, t, d).
        place: (b,) position of the end token.
        depth: Layers that ``hidden`` has gone through.
    """
    tower = model.text_model
    pooled = hidden[:, 0]
    if depth < len(tower.encoder.layers):
        *earlier, last = tower.encoder.layers[depth:]
        hidden = _through(earlier, hidden, causal=True)
        pooled = _at_one_position(last, hidden, place, _seen(hidden, place))
    features: Tensor = model.text_projection(tower.final_layer_norm(pooled.float()))
    return features


def _first(hidden: Tensor) -> Tensor:
    return torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)


def _seen(hidden: Tensor, place: Tensor) -> Tensor:
    """Return which positions the ones at ``place`` may attend to, (b, 1, 1, t)."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    return (positions <= place[:, None])[:, None, None]


def _end_of(model: Any, ids: Tensor) -> Tensor:  # noqa: ANN401 - a CLIPModel
    """Return the position of every text's end token, (b,)."""
    end = model.text_model.eos_token_id
    # Checkpoints from before the end token was configurable say 2 and mean the highest id.
    wanted = ids if end == 2 else (ids == end).int()
    return wanted.argmax(dim=-1)


def _through(layers: Sequence[Any], hidden: Tensor, *, causal: bool) -> Tensor:
    for layer in layers:
        attention = layer.self_attn
        joined = _projections(attention, layer.layer_norm1(hidden))
        mixed = attend(joined, attention.num_heads, attention.scale, causal=causal)
        hidden = hidden + attention.out_proj(mixed)
        hidden = hidden + _mlp(layer.mlp, layer.layer_norm2(hidden))
    return hidden


def _at_one_position(layer: Any, hidden: Tensor, place: Tensor, seen: Tensor | None) -> Tensor:  # noqa: ANN401 - a CLIPEncoderLayer
    """Apply a layer and return its output (b, d) at one position of every row.

    Args:
        layer: The last layer.
        hidden: Its input, (b, t, d).
        place: The position that is wanted, (b,).
        seen: Which positions that one may attend to, (b, 1, 1, t); all if ``None``.
    """
    attention = layer.self_attn
    rows = torch.arange(len(hidden), device=hidden.device)
    normed = layer.layer_norm1(hidden)

    def heads(states: Tensor) -> Tensor:
        return states.view(len(states), -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    mixed = nn.functional.scaled_dot_product_attention(
        heads(attention.q_proj(normed[rows, place])),
        heads(attention.k_proj(normed)),
        heads(attention.v_proj(normed)),
        attn_mask=seen,
        scale=attention.scale,
    )
    state: Tensor = hidden[rows, place] + attention.out_proj(mixed.reshape(len(hidden), -1))
    return state + _mlp(layer.mlp, layer.layer_norm2(state))


def _projections(attention: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a CLIPAttention
    """Return queries, keys and values side by side, (b, t, 3 d), of one product."""
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    weights = [layer.weight for layer in layers]
    held = attention.__dict__.get("consilia_fused")
    if held is None or any(a is not b for a, b in zip(held[0], weights, strict=True)):
        # Scoring runs in inference mode, whose tensors training could not use afterwards.
        with torch.inference_mode(mode=False), torch.no_grad():
            bias = torch.cat([layer.bias for layer in layers])
            held = (weights, torch.cat(weights), bias)
        attention.__dict__["consilia_fused"] = held
    return project(x, layers, held[1], held[2])


def _mlp(mlp: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a CLIPMLP
    inner = mlp.fc1(x)
    if type(mlp.activation_fn).__name__ == "QuickGELUActivation":
        inner = cast("Tensor", _QuickGelu.apply(inner))  # type: ignore[no-untyped-call]
    else:
        inner = mlp.activation_fn(inner)
    output: Tensor = mlp.fc2(inner)
    return output


class _QuickGelu(torch.autograd.Function):
    """``x sigmoid(1.702 x)``, which is ``silu(1.702 x) / 1.702``: its derivative is silu's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        steep = x * _QUICK
        ctx.save_for_backward(steep)
        return nn.functional.silu(steep).mul_(1 / _QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        (steep,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, steep)  # type: ignore[no-any-return]
