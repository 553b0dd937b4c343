"""The dual encoder: a frozen CLIP-family base with a shared and a personal adapter."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.adapter import TOWERS, AdapterLayout, Array, Tower, factor_name
from shared.config import LoraConfig, ModelConfig
from shared.errors import BaseModelError, ConfigError
from shared.model import clip_forward
from shared.model.base import (
    Family,
    base_digest,
    choose_device,
    choose_precision,
    find_base,
    load_model,
)
from shared.model.compiled import compile_between_products
from shared.model.lora import AdaptedLinear, LowRank, Rows, inject
from shared.model.pixels import PixelPipeline
from shared.model.stack import AdapterStack
from shared.model.texts import TextPipeline, Tokens
from shared.model.view import AdapterView


class DualEncoder:
    """Images and texts to unit vectors in one space, under the view that was last used.

    Attributes:
        base_name: As given in the job.
        base_sha256: Digest of weights and configuration.
        folder: Where the base lies.
        layout: The adapted layers.
        logit_scale: Inverse temperature of the base, frozen.
        logit_bias: SigLIP's bias, frozen; 0 for others.
        max_tokens: Longest text, in tokens.
        picture_size: (height, width) of every picture.
        precision: Type of the frozen weights and of the activations.
        frozen_layers: By tower, how many layers lie below the first adapter; 0 for families
            that cannot start in the middle.
    """

    def __init__(
        self, model: nn.Module, folder: Path, config: ModelConfig, lora: LoraConfig
    ) -> None:
        """Wrap a loaded base; use ``load``."""
        # A transformers model of one of the families; its type is not known statically.
        self.model: Any = model
        self.folder = folder
        self.base_name = config.base
        self.lora = lora
        self.device = torch.device("cpu")
        self.logit_scale = float(cast("Tensor", model.logit_scale).detach().exp())
        bias = getattr(self.model, "logit_bias", None)
        self.logit_bias = 0.0 if bias is None else float(bias.detach())
        self.base_sha256 = ""
        self.layout: AdapterLayout
        self._family: Family
        self._pixels: PixelPipeline
        self._texts: TextPipeline
        self.max_tokens = 0
        self.picture_size = (0, 0)
        self.lean = clip_forward.applies_to(model)
        self.frozen_layers: dict[Tower, int] = dict.fromkeys(TOWERS, 0)
        self.precision = torch.float32
        self._rows = Rows()
        self._layers: dict[str, AdaptedLinear] = {}
        self._stacked = 0
        self._merged: AdapterView | None = None

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        lora: LoraConfig,
        device: str = "cpu",
    ) -> Self:
        """Load a base, check its digest, and put the adapters on.

        Args:
            config: Which base, expected digest, precision, longest text, whether to compile.
            lora: Rank, scaling and layers of the adapters.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

        Raises:
            BaseModelError: The base cannot be had or used, or its digest differs.
            ConfigError: A LoRA target that the base does not have, or ``model.compile`` where
                that cannot be.
        """
        folder = find_base(config.base)
        digest = base_digest(folder)
        if config.sha256 is not None and config.sha256 != digest:
            raise BaseModelError(
                f"{folder}: the base has sha256 {digest}, the job expects {config.sha256}; "
                "every site must start from the same base"
            )
        where = choose_device(device)
        model, family = load_model(folder)
        encoder = cls(model, folder, config, lora)
        encoder.base_sha256, encoder._family = digest, family
        encoder.picture_size = _picture_size(encoder.model.config.vision_config)
        encoder._pixels = PixelPipeline(folder, encoder.picture_size)
        encoder._texts = TextPipeline(
            folder,
            encoder.model.config.text_config,
            config.max_tokens,
            fixed_length=family.fixed_length,
        )
        encoder.max_tokens = encoder._texts.max_tokens
        encoder.device, encoder.precision = where, choose_precision(config.precision, where)
        model.to(where, encoder.precision)
        if encoder.lean:
            clip_forward.keep_precise(model)
        elif encoder.precision == torch.bfloat16 and where.type == "cpu":
            encoder.model.set_attn_implementation("eager")  # for the reason in attention.py
        encoder.layout, encoder._layers = inject(model, lora, encoder._rows)
        if encoder.lean:
            encoder.frozen_layers = {t: clip_forward.frozen_layers(model, t) for t in TOWERS}
        if config.compile:
            if not encoder.lean:
                raise ConfigError(
                    f"model.compile = true: is for plain CLIP models, and {config.base!r} is "
                    "another; leave it out"
                )
            compile_between_products(encoder.model, where)
        return encoder

    # Raw records to tensors

    def to_pixels(self, image: PIL.Image.Image) -> NDArray[np.uint8]:
        """Resize and crop a picture once: (h, w) uint8 for mode L, else (h, w, 3)."""
        return self._pixels.to_pixels(image)

    @property
    def preprocessing(self) -> str:
        """Digest of what ``to_pixels`` depends on."""
        return self._pixels.sha256

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text, cut to ``max_tokens``, not padded."""
        return self._texts.token_ids(texts)

    def pad(self, ids: Sequence[Sequence[int]]) -> Tokens:
        """Pad token ids on the right: to the longest given, or as family and precision demand."""
        return self._texts.pad(ids, self.device, self.precision)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of some texts, padded to the longest of them."""
        return self.pad(self.token_ids(texts))

    # Tensors to features

    def encode_images(self, pixels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return L2-normalised features, (b, d) float32, of pictures (b, h, w, c) uint8.

        Args:
            pixels: The pictures; with a stack in use, those of its first adapter first.
            counts: With a stack in use, how many pictures belong to each of its adapters.
        """
        order = self._arrange(counts)
        if order is not None:
            pixels = pixels[order]
        if self.lean:
            return self._image_features(self.image_prefix(pixels), order)
        features = self.model.get_image_features(pixel_values=self._values(pixels)).pooler_output
        return _normalised(features, order)

    def encode_texts(self, tokens: Tokens, counts: Sequence[int] | None = None) -> Tensor:
        """Return L2-normalised features, (b, d) float32, of tokenised texts.

        Args:
            tokens: The texts, in the order of the stack's adapters if there is one in use.
            counts: With a stack in use, how many texts belong to each of its adapters.
        """
        order = self._arrange(counts)
        ids, mask = tokens.ids, tokens.mask
        if order is not None:
            place = order.to(ids.device)
            ids, mask = ids[place], mask[place]
        if self.lean:
            return self._text_features(*self.text_prefix(Tokens(ids, mask)), order)
        features = self.model.get_text_features(
            input_ids=ids, attention_mask=mask if self._family.mask else None
        ).pooler_output
        return _normalised(features, order)

    # The same in two halves, where the family can start in the middle (``lean``)

    def image_prefix(self, pixels: Tensor) -> Tensor:
        """Return what the first adapted layer gets of pictures, (b, t, d) in ``precision``.

        It depends on the frozen base only, whichever view or stack is in use.
        """
        depth = self.frozen_layers["image"]
        return clip_forward.image_prefix(self.model, self._values(pixels), depth)

    def text_prefix(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return what the first adapted layer gets of texts, (b, t, d), and where they end, (b,).

        What lies behind a text's end is never looked at. Otherwise as ``image_prefix``.
        """
        return clip_forward.text_prefix(self.model, tokens.ids, self.frozen_layers["text"])

    def encode_image_prefixes(self, hidden: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Go on from what ``image_prefix`` returned; otherwise as ``encode_images``."""
        order = self._arrange(counts)
        if order is not None:
            hidden = hidden[order.to(hidden.device)]
        return self._image_features(hidden, order)

    def encode_text_prefixes(
        self, hidden: Tensor, ends: Tensor, counts: Sequence[int] | None = None
    ) -> Tensor:
        """Go on from what ``text_prefix`` returned; otherwise as ``encode_texts``."""
        order = self._arrange(counts)
        if order is not None:
            place = order.to(hidden.device)
            hidden, ends = hidden[place], ends[place]
        return self._text_features(hidden, ends, order)

    def _values(self, pixels: Tensor) -> Tensor:
        return self._pixels.to_values(pixels.to(self.device)).to(self.precision)

    def _image_features(self, hidden: Tensor, order: Tensor | None) -> Tensor:
        depth = self.frozen_layers["image"]
        return _normalised(clip_forward.image_features(self.model, hidden, depth), order)

    def _text_features(self, hidden: Tensor, ends: Tensor, order: Tensor | None) -> Tensor:
        depth = self.frozen_layers["text"]
        return _normalised(clip_forward.text_features(self.model, hidden, ends, depth), order)

    def _arrange(self, counts: Sequence[int] | None) -> Tensor | None:
        if self._stacked == 0:
            return None
        if counts is None or len(counts) != self._stacked:
            raise ValueError(f"a stack of {self._stacked} adapters needs as many counts")
        return self._rows.arrange(counts)

    # Adapters

    def use(self, view: AdapterView) -> None:
        """Choose one function for all rows; costs nothing if it is the one in use.

        Everything that the view adds is merged into one weight per layer. Adapters are told
        apart by identity: whoever holds one must not write to its arrays.

        Raises:
            AdapterMismatchError: If the factors do not fit the layout.
        """
        self._merge(view)
        self._stack_up(None, {})

    def use_stack(
        self,
        stack: AdapterStack,
        on: AdapterView,
        alphas: Sequence[Mapping[Tower, float]] | None = None,
    ) -> None:
        """Choose a function per adapter of a stack: what the view says plus its own product.

        Args:
            stack: Trained through its views, or left as it is.
            on: What all of them have in common.
            alphas: Mixing weight per adapter and tower, absent means 0; 1 for all if ``None``.

        Raises:
            AdapterMismatchError: If the view's factors do not fit the layout.
        """
        self._merge(on)
        scales: dict[Tower, float | Tensor] = {}
        for tower in TOWERS:
            scales[tower] = self.layout.scaling
            if alphas is not None:
                mixed = torch.tensor([alpha.get(tower, 0.0) for alpha in alphas])
                scales[tower] = (self.layout.scaling * mixed).reshape(-1, 1, 1).to(self.device)
        self._stack_up(stack, scales)

    @cached_property
    def frozen_norms(self) -> Mapping[str, float]:
        """L2 norm of every adapted layer's frozen weight, by module."""
        return {
            module: float(layer.frozen.weight.detach().float().norm())
            for module, layer in self._layers.items()
        }

    def new_stack(self, count: int, rank: int | None = None) -> AdapterStack:
        """Return a stack of adapters that change nothing; of the layout's rank if not given."""
        return AdapterStack(self.layout, count, self.device, rank)

    def merged_weight(self, module: str) -> Tensor:
        """Return the weight (m, n) of an adapted layer under the view in use."""
        return self._layers[module].weight

    def save_preprocessing(self, folder: Path) -> None:
        """Write tokenizer and image processor into a checkpoint's folder."""
        self._texts.tokenizer.save_pretrained(folder)
        self._pixels.processor.save_pretrained(folder)

    def _stack_up(self, stack: AdapterStack | None, scales: Mapping[Tower, float | Tensor]) -> None:
        self._stacked = 0 if stack is None else len(stack)
        for shape in self.layout.layers:
            layer = self._layers[shape.module]
            if stack is None:
                layer.low_rank = None
            else:
                a, b = (stack.view(factor_name(shape.module, factor)) for factor in ("A", "B"))
                layer.low_rank = LowRank(a, b, scales[shape.tower])

    def _merge(self, view: AdapterView) -> None:
        if self._merged is not None and self._merged.same_as(view):
            return
        terms = view.products(self.layout)
        self._merged = None  # a failure below must not leave half of a view behind
        # Scoring runs in inference mode, whose tensors training could not use afterwards.
        with torch.inference_mode(mode=False), torch.no_grad():
            for shape in self.layout.layers:
                layer = self._layers[shape.module]
                mine = terms.get(shape.module)
                if mine is None:
                    layer.in_use = None
                    continue
                weight = layer.frozen.weight.float()
                for b, a, scale in mine:
                    weight = torch.addmm(
                        weight, _on(b, self.device), _on(a, self.device), alpha=scale
                    )
                layer.in_use = weight.to(layer.frozen.weight.dtype)
        self._merged = view


def _on(array: Array, device: torch.device) -> Tensor:
    return torch.tensor(array).to(device)


def _normalised(features: Tensor, order: Tensor | None) -> Tensor:
    """Return unit rows in float32, in the order in which they were asked for."""
    unit = nn.functional.normalize(features.float(), dim=-1)
    if order is None:
        return unit
    return unit[torch.argsort(order).to(unit.device)]


def _picture_size(vision_config: Any) -> tuple[int, int]:  # noqa: ANN401 - transformers' config
    size = vision_config.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
