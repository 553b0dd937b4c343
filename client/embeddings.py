"""Embeddings of records under one view of the encoder, chunk by chunk, as NumPy arrays.

What the frozen base says of a site's records never changes; it is kept and computed once, however
many runs, methods and reports ask for it. Embeddings are as private as the records that they come
from: they are kept in this process's memory and nowhere else, and go with records or encoder.
A chunk holds records of one site only, so that kept embeddings have the same bits whoever asked.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
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

_KEPT_BYTES = 256 * 2**20
"""For what the base says; beyond it the oldest go, so that many sites do not fill the memory."""


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


def chunk_of(device: torch.device | str) -> int:
    """Return how many samples are encoded at a time where no gradient is wanted.

    On CPUs more than 64 do not fit the cache, and are slower.
    """
    return 64 if torch.device(device).type == "cpu" else 256


def embed_images(
    encoder: Embedder, view: AdapterView, split: Split, rows: NDArray[np.intp]
) -> Embeddings:
    """Return (len(rows), d) unit embeddings of the images of some records; not to be written to.

    Args:
        encoder: Left in the view, if anything had to be computed.
        view: The function that is wanted.
        split: Records; only ``rows`` of its pixels are read.
        rows: Records that have an image.

    Raises:
        TrainingError: ``embedding-not-finite`` if the adapter has diverged.
    """

    def embed() -> Embeddings:
        parts = []
        size = chunk_of(encoder.device)
        with torch.inference_mode():
            for start in range(0, len(rows), size):
                pixels = np.ascontiguousarray(split.pixels[rows[start : start + size]])
                batch = torch.from_numpy(pixels).to(encoder.device)
                parts.append(encoder.encode_images(batch).float().cpu().numpy())
        return _finite(parts, "image")

    return _under(encoder, view, split, ("image", rows.tobytes()), embed)


def embed_texts(
    encoder: Embedder, view: AdapterView, split: Split, texts: Sequence[str]
) -> Embeddings:
    """Return (len(texts), d) unit embeddings; texts of like length share a chunk.

    Args:
        encoder: As for ``embed_images``.
        view: The function that is wanted.
        split: With whose records the embeddings are kept.
        texts: Texts of those records, or prompts.

    Raises:
        TrainingError: ``embedding-not-finite`` if the adapter has diverged.
    """

    def embed() -> Embeddings:
        order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), texts[number]))
        parts = []
        size = chunk_of(encoder.device)
        with torch.inference_mode():
            for start in range(0, len(order), size):
                chosen = [texts[number] for number in order[start : start + size]]
                tokens = encoder.tokenize(chosen)
                parts.append(encoder.encode_texts(tokens).float().cpu().numpy())
        by_length = _finite(parts, "text")
        result = np.empty_like(by_length)
        result[order] = by_length
        return result

    return _under(encoder, view, split, ("text", tuple(texts)), embed)


def embed_prompts(
    encoder: Embedder, view: AdapterView, split: Split, prompts: Sequence[Prompts]
) -> list[Floats]:
    """Return the direction of every finding, mean positive minus mean negative embedding."""
    texts = sorted({text for entry in prompts for text in (*entry.positive, *entry.negative)})
    place = {text: number for number, text in enumerate(texts)}
    embedded = embed_texts(encoder, view, split, texts)
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


_Key = tuple[int, int, tuple[str, object]]

_kept: OrderedDict[_Key, Embeddings] = OrderedDict()
_lock = threading.Lock()


def _under(
    encoder: Embedder,
    view: AdapterView,
    split: Split,
    what: tuple[str, object],
    embed: Callable[[], Embeddings],
) -> Embeddings:
    """Return what ``embed`` gives under a view; what is kept of the base is not computed anew."""
    if not view.same_as(AdapterView()):
        encoder.use(view)
        return embed()
    key = (id(encoder), id(split), what)
    found = _kept.get(key)
    if found is None:
        encoder.use(view)
        found = embed()
        found.flags.writeable = False
        _keep(key, found)
        for owner in (split, encoder):
            weakref.finalize(owner, _kept.pop, key, None)
    return found


def _keep(key: _Key, embedded: Embeddings) -> None:
    with _lock:
        _kept[key] = embedded
        while sum(kept.nbytes for kept in list(_kept.values())) > _KEPT_BYTES:
            _kept.popitem(last=False)
