"""LoRA on the linear layers of a dual encoder, injected through PEFT.

Hu et al., 2021, https://arxiv.org/abs/2106.09685. Every adapted layer carries two adapters of
PEFT, ``shared`` and ``personal``. PEFT's own forward multiplies W0, A and B one after the
other; at the widths of a small encoder that costs more in passes over the activations than in
arithmetic. ``MergedLinear`` computes ``x (W0 + s R + s B A + alpha s B_P A_P)^T`` with one
product, and the factors' gradients from the low-rank products alone, so that neither the
forward nor the backward pass is ever wider than the frozen layer's.
"""

import difflib
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.adapter import AdapterLayout, LayerShape, Tower
from shared.config import LoraConfig
from shared.errors import ConfigError

Which = Literal["shared", "personal"]

# Module paths of the CLIP family in transformers: CLIP, MetaCLIP 2, SigLIP and the image towers
# of all of them first, then the BERT-like text towers of AltCLIP and Chinese-CLIP.
GROUPS: dict[str, str] = {
    "attention": r"self_attn\.(q_proj|k_proj|v_proj|out_proj)"
    r"|attention\.self\.(query|key|value)|attention\.output\.dense",
    "mlp": r"layers\.\d+\.mlp\.(fc1|fc2)|layer\.\d+\.(intermediate|output)\.dense",
    "projection": r"visual_projection|text_projection",
}
_LAYER_NUMBER = re.compile(r"\.layers?\.(\d+)\.")


class _LowRankProduct(torch.autograd.Function):
    """``x W^T + b`` for a merged W, with gradients for x and the two factors only."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - torch passes them one by one
        ctx: Any,  # noqa: ANN401 - torch's own context
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factors: tuple[float, Tensor, Tensor],
        a: Tensor,
        b: Tensor,
    ) -> Tensor:
        scaling, low_a, low_b = factors
        ctx.save_for_backward(x, weight, low_a, low_b)
        ctx.scaling, ctx.types = scaling, (a.dtype, b.dtype)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, a, b = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        inputs = x.reshape(-1, x.shape[-1])
        for_x = gradient @ weight if ctx.needs_input_grad[0] else None
        for_a = for_b = None
        if ctx.needs_input_grad[4]:
            for_a = (ctx.scaling * ((rows @ b).T @ inputs)).to(ctx.types[0])
        if ctx.needs_input_grad[5]:
            for_b = (ctx.scaling * (rows.T @ (inputs @ a.T))).to(ctx.types[1])
        return for_x, None, None, None, for_a, for_b


class MergedLinear(PeftLinear):
    """PEFT's LoRA layer, computed with one product; the frozen weight is never written to."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 - peft's signature
        super().__init__(*arguments, **keywords)
        self.use_shared = False
        self.personal_alpha = 0.0
        self._residual: tuple[Tensor, Tensor] | None = None
        self._foundation: Tensor | None = None
        self._product: tuple[object, Tensor] | None = None

    def factor(self, which: Which, factor: str) -> nn.Parameter:
        """Return A, shape (r, n), or B, shape (m, r), of one of the two adapters."""
        linear = (self.lora_A if factor == "A" else self.lora_B)[which]
        return cast("nn.Parameter", linear.weight)

    @property
    def base_weight_shape(self) -> tuple[int, int]:
        """(m outputs, n inputs) of the frozen weight."""
        outputs, inputs = cast("Tensor", self.base_layer.weight).shape
        return int(outputs), int(inputs)

    def set_residual(self, residual: tuple[Tensor, Tensor] | None) -> None:
        """Set the folded product (B, A) of this layer; ``None`` gives back the frozen weight.

        It is always computed from the frozen weight anew, so that a site that joins late gets
        the same bits as one that was there from the start.
        """
        self._residual, self._foundation, self._product = residual, None, None

    def weight_in_use(self) -> Tensor:
        """Return the weight in use, shape (m, n); computed once until a factor changes.

        While a factor is trained it is computed every time: fused optimizers write to a
        parameter without raising its version.
        """
        foundation = self._base()
        active: list[tuple[Which, float]] = []
        if self.use_shared:
            active.append(("shared", self.scaling["shared"]))
        if self.personal_alpha:
            active.append(("personal", self.personal_alpha * self.scaling["personal"]))
        if not active:
            return foundation
        factors = [(w, s, self.factor(w, "A"), self.factor(w, "B")) for w, s in active]
        key = tuple((w, s, a._version, b._version) for w, s, a, b in factors)
        if self._trained() is not None:
            self._product = None
        if self._product is None or self._product[0] != key:
            # Scoring runs in inference mode, whose tensors training could not use afterwards.
            with torch.inference_mode(mode=False), torch.no_grad():
                weight = foundation
                for _, scale, a, b in factors:
                    weight = torch.addmm(weight, b, a, alpha=scale)
            if self._trained() is not None:
                return weight
            self._product = (key, weight)
        return self._product[1]

    def _base(self) -> Tensor:
        pristine = cast("Tensor", self.base_layer.weight)
        if self._residual is None or not self.use_shared:
            return pristine
        if self._foundation is None:
            b, a = self._residual
            with torch.inference_mode(mode=False), torch.no_grad():
                self._foundation = torch.addmm(pristine, b, a, alpha=self.scaling["shared"])
        return self._foundation

    def _trained(self) -> Which | None:
        for which in ("shared", "personal"):
            if any(self.factor(which, factor).requires_grad for factor in "AB"):
                return which
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted layer's output, shape (..., m) for an input (..., n)."""
        weight, bias = self.weight_in_use(), cast("Tensor | None", self.base_layer.bias)
        trained = self._trained() if torch.is_grad_enabled() else None
        if trained is None:
            return nn.functional.linear(x, weight, bias)
        alpha = 1.0 if trained == "shared" else self.personal_alpha
        a, b = self.factor(trained, "A"), self.factor(trained, "B")
        low_a, low_b = a.detach(), b.detach()
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, low_a, low_b = x.to(kind), weight.to(kind), low_a.to(kind), low_b.to(kind)
            bias = bias.to(kind) if bias is not None else None
        scaled = (alpha * self.scaling[trained], low_a, low_b)
        product = _LowRankProduct.apply(x, weight, bias, scaled, a, b)  # type: ignore[no-untyped-call]
        return cast("Tensor", product)


def tower_of_module(path: str) -> Tower:
    """Return the tower that a module path of a CLIP-family model belongs to."""
    return "text" if path.startswith(("text_model.", "text_projection")) else "image"


def find_targets(model: nn.Module, targets: Sequence[str], layers: str) -> list[str]:
    """Return the paths of the linear layers to adapt, image tower first, in layer order.

    Attention-pooling heads (SigLIP) stay frozen. ``top:N`` leaves all but the last N layers of
    each tower alone; projections stay in.

    Args:
        model: The base.
        targets: Groups of ``GROUPS`` or module names, such as ``q_proj``.
        layers: ``all`` or ``top:N``.

    Raises:
        ConfigError: A target that is not in the base, with the nearest that is.
    """
    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".head" not in f".{path}"
    ]
    chosen: set[str] = set()
    for target in targets:
        found = _matching(linear, target)
        # SigLIP has no projection, which is not a mistake in a job that serves any base.
        if not found and target != "projection":
            names = sorted({*GROUPS, *(path.rsplit(".", 1)[-1] for path in linear)})
            near = difflib.get_close_matches(target, names, n=1, cutoff=0.0)
            raise ConfigError(
                f"lora.targets: {target!r} is not a linear layer of this base; "
                f"did you mean {near[0]!r}?"
            )
        chosen.update(found)
    kept = _top_layers(linear, chosen, layers)
    if not kept:
        raise ConfigError(f"lora.targets = {list(targets)}: no layer of this base is adapted")
    return sorted(kept, key=_natural)


def _matching(paths: Sequence[str], target: str) -> list[str]:
    pattern = GROUPS.get(target)
    if pattern is not None:
        return [path for path in paths if re.search(rf"(^|\.)({pattern})$", path)]
    return [path for path in paths if path == target or path.endswith(f".{target}")]


def _top_layers(paths: Sequence[str], chosen: set[str], layers: str) -> set[str]:
    if layers == "all":
        return chosen
    match = re.fullmatch(r"top:([1-9]\d*)", layers)
    if match is None:
        raise ConfigError(f"lora.layers = {layers!r}: expected 'all' or 'top:N', such as 'top:2'")
    depth: dict[Tower, int] = {"image": 0, "text": 0}
    for path in paths:
        number = _LAYER_NUMBER.search(path)
        if number:
            tower = tower_of_module(path)
            depth[tower] = max(depth[tower], int(number[1]) + 1)
    least = {tower: count - int(match[1]) for tower, count in depth.items()}
    return {
        path
        for path in chosen
        if (number := _LAYER_NUMBER.search(path)) is None
        or int(number[1]) >= least[tower_of_module(path)]
    }


def _natural(path: str) -> tuple[bool, bool, list[tuple[int, str]]]:
    """Sort key: image before text, projections last, layer 10 after layer 9."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]
    return tower_of_module(path) == "text", "projection" in path, parts


def inject(
    model: nn.Module, config: LoraConfig, personal_rank: int
) -> tuple[AdapterLayout, dict[str, MergedLinear]]:
    """Put both adapters on the base's layers, in place; nothing is trainable afterwards.

    The personal adapter has the shared one's scaling s, whatever its rank.

    Returns:
        The layout, and the adapted layers by module path in the layout's order.
    """
    targets = find_targets(model, config.targets, config.layers)
    adapters: tuple[tuple[Which, int], ...] = (("shared", config.rank), ("personal", personal_rank))
    for which, rank in adapters:
        peft = PeftConfig(
            r=rank,
            lora_alpha=config.scaling * rank,  # type: ignore[arg-type]  # any number will do
            target_modules=list(targets),
            init_lora_weights=True,
        )
        peft._register_custom_module({nn.Linear: MergedLinear})
        # PEFT draws its start from torch's generator; what is drawn is replaced before use,
        # and nobody else's random numbers may move because of it.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(peft, model, which)
    model.requires_grad_(requires_grad=False)
    by_path = {p: m for p, m in model.named_modules() if isinstance(m, MergedLinear)}
    adapted = {path: by_path[path] for path in targets}
    shapes = tuple(
        LayerShape(path, tower_of_module(path), *layer.base_weight_shape)
        for path, layer in adapted.items()
    )
    if not math.isfinite(config.scaling):
        raise ConfigError(f"lora.alpha = {config.alpha}: expected a finite number")
    return AdapterLayout(shapes, config.rank, config.scaling), adapted
