"""The plain loop that a researcher would write: peft, one client after the other on one base.

Nothing here is Consilia's. Pictures and texts are prepared before the clock starts, with the
checkpoint's own processors; captions are padded to the longest that the model takes, as the
processors of CLIP do it in transformers' examples. No attention mask is given: a causal tower
that pools at the end token needs none, and is never slower without.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from transformers.utils import logging

from benchmarks.fit import LocalFit

State = dict[str, Tensor]
Padding = Literal["max_length", "longest"]

BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class PlainRecords:
    """A client's pairs, ready for the model: pixels (n, 3, h, w) and token ids (n, t)."""

    pixels: Tensor
    ids: Tensor


def load_clip(base: Path, dtype: torch.dtype, attention: str = "sdpa") -> CLIPModel:
    """Load a checkpoint with weights of a type and one of transformers' kinds of attention."""
    logging.disable_progress_bar()
    return CLIPModel.from_pretrained(base, dtype=dtype, attn_implementation=attention)


def with_lora(model: CLIPModel, targets: Sequence[str]) -> torch.nn.Module:
    """Put a trainable LoRA of rank 8 on the named layers; everything else is frozen."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about peft's calls
        return get_peft_model(model, lora)


class PlainLoop:
    """A CLIP with a LoRA of peft, and the loop over clients."""

    def __init__(
        self,
        base: Path,
        targets: Sequence[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        padding: Padding = "max_length",
    ) -> None:
        """Load the base and put the adapter on.

        Args:
            base: A checkpoint of CLIP.
            targets: Names of the linear layers to adapt.
            dtype: Of the frozen weights; peft keeps the factors in float32.
            device: Where to compute.
            padding: Captions to the longest of the model, or to the longest of the batch.
        """
        model = load_clip(base, dtype)
        text: Any = model.config.text_config
        self._end = int(text.eos_token_id)
        self.model: Any = with_lora(model, targets).to(device).eval()
        self.device, self.dtype, self.padding = device, dtype, padding
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self._images: Any = AutoImageProcessor.from_pretrained(base, backend="pil")

    def prepare(self, pictures: Sequence[PIL.Image.Image], texts: Sequence[str]) -> PlainRecords:
        """Return a client's records as the model takes them."""
        pixels = self._images(list(pictures), return_tensors="pt")["pixel_values"]
        ids = self._tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        )["input_ids"]
        return PlainRecords(pixels.to(self.device, self.dtype), ids.to(self.device))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the factors."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def state(self) -> State:
        """Return a copy of the factors by PEFT's name."""
        state = get_peft_model_state_dict(self.model)
        return {name: value.detach().clone() for name, value in state.items()}

    def loss(self, records: PlainRecords, rows: Tensor) -> Tensor:
        """Return CLIP's loss of some rows."""
        ids = records.ids[rows]
        if self.padding == "longest":
            ids = ids[:, : int((ids == self._end).int().argmax(1).max()) + 1]
        loss: Tensor = self.model(
            pixel_values=records.pixels[rows], input_ids=ids, return_loss=True
        ).loss
        return loss

    def train_client(
        self, records: PlainRecords, start: Mapping[str, Tensor], fit: LocalFit, seed: int
    ) -> State:
        """Train one client from the round's adapter, and return what it has become."""
        set_peft_model_state_dict(self.model, dict(start))
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=fit.learning_rate, betas=BETAS, weight_decay=0.0
        )
        for rows in batches(len(records.ids), fit, seed):
            loss = self.loss(records, torch.from_numpy(rows).to(self.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return self.state()

    def train_round(
        self, clients: Sequence[PlainRecords], start: Mapping[str, Tensor], fit: LocalFit
    ) -> list[State]:
        """Train all clients, one after the other."""
        return [
            self.train_client(records, start, fit, seed) for seed, records in enumerate(clients)
        ]


def batches(count: int, fit: LocalFit, seed: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the rows of every step: permutations, one after the other, in whole batches."""
    rng = np.random.default_rng(seed)
    plan: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    while len(plan) < fit.steps:
        order = rng.permutation(count).astype(np.int64)
        whole = range(0, count - fit.batch_size + 1, fit.batch_size)
        plan += [order[start : start + fit.batch_size] for start in whole]
    return plan[: fit.steps]
