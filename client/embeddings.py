"""Embeddings of records under one view of the encoder, batch by batch, as NumPy arrays."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.records import Prompts, Split
from shared.errors import TrainingError
from shared.metrics.bootstrap import Floats
from shared.metrics.zero_shot import prompt_direction
from shared.model.view import AdapterView

Embeddings = NDArray[np.float32]

BATCH = 256


class Embedder(Protocol):
    """The part of ``DualEncoder`` that scoring needs."""

    @property
    def device(self) -> torch.device | str:
        """Where tensors are expected."""

    @property
    def logit_scale(self) -> float:
        """Inverse temperature of the base."""

    def use(self, view: AdapterView) -> None:
        """Choose which function the encoder computes."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return (b, d) unit embeddings of uint8 pixels (b, h, w, c)."""

    def tokenize(self, texts: Sequence[str]) -> Any:  # noqa: ANN401 - its own token type
        """Return tokens for ``encode_texts``."""

    def encode_texts(self, tokens: Any) -> Tensor:  # noqa: ANN401 - its own token type
        """Return (b, d) unit embeddings."""


def embed_images(encoder: Embedder, split: Split, rows: NDArray[np.intp]) -> Embeddings:
    """Return (len(rows), d) unit embeddings of the images of some records.

    Args:
        encoder: In the view that is wanted.
        split: Records; only ``rows`` of its pixels are read.
        rows: Records that have an image.

    Raises:
        TrainingError: ``embedding-not-finite`` if the adapter has diverged.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            pixels = np.ascontiguousarray(split.pixels[rows[start : start + BATCH]])
            batch = torch.from_numpy(pixels).to(encoder.device)
            parts.append(encoder.encode_images(batch).float().cpu().numpy())
    return _finite(parts, "image")


def embed_texts(encoder: Embedder, texts: Sequence[str]) -> Embeddings:
    """Return (len(texts), d) unit embeddings; texts of like length share a batch.

    Raises:
        TrainingError: ``embedding-not-finite`` if the adapter has diverged.
    """
    order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), texts[number]))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            tokens = encoder.tokenize([texts[number] for number in order[start : start + BATCH]])
            parts.append(encoder.encode_texts(tokens).float().cpu().numpy())
    by_length = _finite(parts, "text")
    result = np.empty_like(by_length)
    result[order] = by_length
    return result


def embed_prompts(encoder: Embedder, prompts: Sequence[Prompts]) -> list[Floats]:
    """Return the direction of every finding, mean positive minus mean negative embedding."""
    texts = sorted({text for entry in prompts for text in (*entry.positive, *entry.negative)})
    place = {text: number for number, text in enumerate(texts)}
    embedded = embed_texts(encoder, texts)
    return [
        prompt_direction(
            embedded[[place[text] for text in entry.positive]],
            embedded[[place[text] for text in entry.negative]],
        )
        for entry in prompts
    ]


def _finite(parts: Sequence[NDArray[np.float32]], tower: str) -> Embeddings:
    if not parts:
        return np.zeros((0, 1), dtype=np.float32)
    embedded = np.concatenate(parts)
    if not np.isfinite(embedded).all():
        raise TrainingError(
            "embedding-not-finite",
            f"the {tower} embeddings are not finite: the adapter has diverged; train with a "
            "smaller learning rate",
        )
    return embedded
