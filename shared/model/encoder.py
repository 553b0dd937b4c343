"""The dual encoder: a frozen CLIP-family base with a shared and a personal adapter."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.adapter import (
    TOWERS,
    Adapter,
    AdapterLayout,
    Array,
    Factor,
    Tower,
    check_compatible,
    factor_name,
    factor_of,
    pairs,
)
from shared.config import LoraConfig, ModelConfig
from shared.errors import AdapterMismatchError, BaseModelError
from shared.model import clip_forward
from shared.model.base import Family, base_digest, choose_device, find_base, load_model
from shared.model.lora import MergedLinear, Which, inject
from shared.model.pixels import PixelPipeline
from shared.model.view import AdapterView


@dataclass(frozen=True)
class Tokens:
    """Texts as the text tower takes them.

    Attributes:
        ids: (b, t) int64, padded on the right.
        mask: (b, t) int64, 1 where there is a token.
    """

    ids: Tensor
    mask: Tensor


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
        personal_rank: Rank of the personal adapter.
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
        self._tokenizer: Any
        self.max_tokens = 0
        self._lean = clip_forward.applies_to(model)
        self.personal_rank = 0
        self._layers: dict[str, MergedLinear] = {}
        self._held: dict[Which, Adapter | None] = {"shared": None, "personal": None}
        self._residual: Adapter | None = None
        self._precision: torch.dtype | None = None

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        lora: LoraConfig,
        personal_rank: int = 8,
        device: str = "cpu",
    ) -> Self:
        """Load a base, check its digest, and put the adapters on.

        Args:
            config: Which base, expected digest, precision, longest text.
            lora: Rank, scaling and layers of the adapters.
            personal_rank: Rank of the personal adapter.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

        Raises:
            BaseModelError: The base cannot be had or used, or its digest differs.
            ConfigError: A LoRA target that the base does not have.
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
        encoder._pixels = PixelPipeline(folder, _picture_size(encoder.model.config.vision_config))
        encoder._tokenizer, encoder.max_tokens = _load_tokenizer(
            folder, encoder.model.config.text_config, config.max_tokens
        )
        encoder.layout, encoder._layers = inject(model, lora, personal_rank)
        encoder.personal_rank = personal_rank
        model.to(where)
        encoder.device = where
        encoder._precision = _precision(config, where)
        return encoder

    # Raw records to tensors

    def to_pixels(self, image: PIL.Image.Image) -> NDArray[np.uint8]:
        """Resize and crop a picture once: (h, w) uint8 for mode L, else (h, w, 3)."""
        return self._pixels.to_pixels(image)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text, cut to ``max_tokens``, not padded."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def pad(self, ids: Sequence[Sequence[int]]) -> Tokens:
        """Pad token ids on the right: to the longest given, or as the family demands."""
        longest = max((len(row) for row in ids), default=1)
        width = self.max_tokens if self._family.fixed_length else longest
        padded = torch.full((len(ids), width), int(self._tokenizer.pad_token_id or 0))
        mask = torch.zeros_like(padded)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(list(tokens), dtype=torch.int64)
            mask[row, : len(tokens)] = 1
        return Tokens(padded.to(self.device), mask.to(self.device))

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of some texts, padded to the longest of them."""
        return self.pad(self.token_ids(texts))

    # Tensors to features

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return L2-normalised features, (b, d) float32, of pictures (b, h, w, c) uint8."""
        values = self._pixels.to_values(pixels.to(self.device))
        with self._autocast():
            if self._lean:
                features = clip_forward.image_features(self.model, values)
            else:
                features = self.model.get_image_features(pixel_values=values).pooler_output
        return nn.functional.normalize(features.float(), dim=-1)

    def encode_texts(self, tokens: Tokens) -> Tensor:
        """Return L2-normalised features, (b, d) float32, of tokenised texts."""
        mask = tokens.mask if self._family.mask else None
        with self._autocast():
            if self._lean:
                features = clip_forward.text_features(self.model, tokens.ids)
            else:
                features = self.model.get_text_features(
                    input_ids=tokens.ids, attention_mask=mask
                ).pooler_output
        return nn.functional.normalize(features.float(), dim=-1)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._precision)

    # Adapters

    def use(self, view: AdapterView) -> None:
        """Choose the function; costs nothing if it is the one in use.

        Adapters are told apart by identity: whoever holds one must not write to its arrays.

        Raises:
            AdapterMismatchError: If the factors do not fit the layout.
        """
        if view.shared is not None:
            self._put("shared", view.shared.factors)
            self._put_residual(view.shared.residual)
        alpha = dict(view.alpha) if view.personal is not None else {}
        if any(alpha.values()) and view.personal is not None:
            self._put("personal", view.personal)
        for shape in self.layout.layers:
            layer = self._layers[shape.module]
            layer.use_shared = view.shared is not None
            layer.personal_alpha = float(alpha.get(shape.tower, 0.0))

    def parameters_of(
        self,
        which: Which,
        factors: Iterable[Factor] = ("A", "B"),
        towers: Iterable[Tower] = TOWERS,
    ) -> dict[str, nn.Parameter]:
        """Return factors as torch parameters, by PEFT's name, to be trained in place.

        The next ``use`` copies the adapter anew, whatever was trained in between.
        """
        self._held[which] = None
        wanted, kinds = set(towers), tuple(factors)
        return {
            factor_name(shape.module, factor): self._layers[shape.module].factor(which, factor)
            for shape in self.layout.layers
            if shape.tower in wanted
            for factor in kinds
        }

    def read_adapter(
        self,
        which: Which,
        factors: Iterable[Factor] = ("A", "B"),
        towers: Iterable[Tower] = TOWERS,
    ) -> dict[str, Array]:
        """Return a copy of factors as float32 arrays, by PEFT's name."""
        held = self._held[which]
        parameters = self.parameters_of(which, factors, towers)
        self._held[which] = held
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, parameter in parameters.items()
        }

    def merged_weight(self, module: str) -> Tensor:
        """Return the weight (m, n) of an adapted layer under the view in use."""
        return self._layers[module].weight_in_use()

    def save_preprocessing(self, folder: Path) -> None:
        """Write tokenizer and image processor into a checkpoint's folder."""
        self._tokenizer.save_pretrained(folder)
        self._pixels.processor.save_pretrained(folder)

    def _put(self, which: Which, adapter: Adapter) -> None:
        if self._held[which] is adapter:
            return
        if which == "shared":
            check_compatible(self.layout, adapter, self.layout.names())
        parameters = self.parameters_of(which)
        with torch.inference_mode(mode=False), torch.no_grad():
            for name, array in adapter.items():
                parameter = parameters.get(name)
                if parameter is None or parameter.shape != array.shape:
                    raise AdapterMismatchError(f"{name}: does not fit the base's {which} adapter")
                parameter.copy_(torch.tensor(array))
        if which == "personal":
            self._zero_missing(parameters, adapter)
        self._held[which] = adapter

    def _zero_missing(self, parameters: dict[str, nn.Parameter], adapter: Adapter) -> None:
        """A personal adapter of one tower leaves the other tower as it is: B = 0 there."""
        with torch.inference_mode(mode=False), torch.no_grad():
            for name, parameter in parameters.items():
                if name not in adapter and factor_of(name) == "B":
                    parameter.zero_()

    def _put_residual(self, residual: Adapter) -> None:
        if self._residual is residual or (not self._residual and not residual):
            self._residual = residual
            return
        folded: dict[str, tuple[Tensor, Tensor]] = {}
        for module, b, a in pairs(residual):
            layer = self._layers.get(module)
            if layer is None or (b.shape[0], a.shape[1]) != layer.base_weight_shape:
                raise AdapterMismatchError(f"{module}: residual does not fit the base")
            folded[module] = (_on(b, self.device), _on(a, self.device))
        for module, layer in self._layers.items():
            layer.set_residual(folded.get(module))
        self._residual = residual


def _on(array: Array, device: torch.device) -> Tensor:
    return torch.tensor(array).to(device)


def _precision(config: ModelConfig, device: torch.device) -> torch.dtype | None:
    """Autocast type: bfloat16 if asked for, or by default on CUDA; none means float32."""
    if config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return None


def _picture_size(vision_config: Any) -> tuple[int, int]:  # noqa: ANN401 - transformers' config
    size = vision_config.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _load_tokenizer(
    folder: Path,
    text_config: Any,  # noqa: ANN401 - transformers' config
    max_tokens: int | None,
) -> tuple[Any, int]:
    """Return the checkpoint's tokenizer and the longest text that its tower takes."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes a second

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BaseModelError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}); expected "
            "tokenizer.json, or the vocabulary files that its tokenizer_config.json names"
        ) from None
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    limit = int(min(text_config.max_position_embeddings, tokenizer.model_max_length))
    if max_tokens is not None and max_tokens > limit:
        raise BaseModelError(
            f"model.max_tokens = {max_tokens}: this base takes texts of up to {limit} tokens"
        )
    return tokenizer, max_tokens or limit
