"""A site's records as batches: who is in them, in which order, and as tensors.

Every record belongs to one stratum: it has both sides, only an image, or only a text. A batch
takes from every stratum in proportion, so that the records of both towers stay within the
batch size, and never holds a record twice.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.records import SiteData, Split, SplitName
from shared.config import TrainConfig
from shared.model.encoder import DualEncoder

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Batch:
    """Row numbers of one split, by what the records have."""

    pairs: Rows
    images: Rows
    texts: Rows

    @property
    def with_image(self) -> Rows:
        """Rows that have an image: pairs first, then lone images."""
        return np.concatenate([self.pairs, self.images])

    @property
    def with_text(self) -> Rows:
        """Rows that have a text: pairs first, then lone texts."""
        return np.concatenate([self.pairs, self.texts])

    @property
    def size(self) -> int:
        """Records of the tower that has more of them."""
        return len(self.pairs) + max(len(self.images), len(self.texts))


@dataclass(frozen=True)
class PreparedSplit:
    """A split with its texts tokenised; nothing behind a mask is in it.

    Attributes:
        split: The records.
        everything: All rows that have something, as one batch.
        token_ids: Tokens by row, empty where there is no text.
        text_numbers: (n,) equal where texts are identical; -1 without text.
        labels: (n, findings) float32.
        labelled: (n,) bool.
    """

    split: Split
    everything: Batch
    token_ids: Sequence[Sequence[int]]
    text_numbers: Tensor
    labels: Tensor
    labelled: Tensor


_PREPARED: dict[tuple[int, int, SplitName], PreparedSplit] = {}


def prepare(encoder: DualEncoder, data: SiteData, name: SplitName) -> PreparedSplit:
    """Tokenise a split once; as long as the site's data live, the result is kept."""
    key = (id(encoder), id(data), name)
    prepared = _PREPARED.get(key)
    if prepared is None:
        prepared = _prepare(encoder, data.splits[name])
        _PREPARED[key] = prepared
        weakref.finalize(data, _PREPARED.pop, key, None)
        weakref.finalize(encoder, _PREPARED.pop, key, None)
    return prepared


def _prepare(encoder: DualEncoder, split: Split) -> PreparedSplit:
    rows = np.flatnonzero(split.has_text)
    distinct = sorted({split.texts[row] for row in rows})
    number_of = {text: number for number, text in enumerate(distinct)}
    encoded = encoder.token_ids(distinct)
    numbers = np.full(len(split), -1, dtype=np.int64)
    for row in rows:
        numbers[row] = number_of[split.texts[row]]
    return PreparedSplit(
        split=split,
        everything=Batch(
            pairs=np.flatnonzero(split.has_image & split.has_text),
            images=np.flatnonzero(split.has_image & ~split.has_text),
            texts=np.flatnonzero(split.has_text & ~split.has_image),
        ),
        token_ids=[encoded[number] if number >= 0 else [] for number in numbers],
        text_numbers=torch.from_numpy(numbers),
        labels=torch.from_numpy(np.ascontiguousarray(split.labels, dtype=np.float32)),
        labelled=torch.from_numpy(np.ascontiguousarray(split.labelled)),
    )


def steps_of(prepared: PreparedSplit, config: TrainConfig) -> int:
    """Return the optimiser steps of one round: as given, or so many passes over the data."""
    if config.steps is not None:
        return config.steps
    batches = prepared.everything.size / config.batch_size
    return max(1, math.ceil(float(config.epochs or 1.0) * batches))


def draw_batches(
    prepared: PreparedSplit, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yield batches for ever: permutations of every stratum, one after the other.

    What is left of a permutation and does not fill a batch's share is skipped: the next
    permutation could hold the same records, and a record must not be its own negative.
    """
    everything = prepared.everything
    share = min(1.0, batch_size / max(1, everything.size))
    pairs = _take(everything.pairs, max(2, round(share * len(everything.pairs))), rng)
    images = _take(everything.images, max(1, round(share * len(everything.images))), rng)
    texts = _take(everything.texts, max(1, round(share * len(everything.texts))), rng)
    while True:
        yield Batch(next(pairs), next(images), next(texts))


def _take(rows: Rows, count: int, rng: np.random.Generator) -> Iterator[Rows]:
    count = min(count, len(rows))
    while True:
        if count == 0:
            yield rows[:0]
            continue
        order = rng.permutation(rows)
        for start in range(0, len(order) - count + 1, count):
            yield order[start : start + count]


def pixels_of(prepared: PreparedSplit, rows: Rows) -> Tensor:
    """Return the pictures of some rows, (b, h, w, c) uint8."""
    return torch.from_numpy(np.ascontiguousarray(prepared.split.pixels[rows]))


def shifted(pixels: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    """Move every picture by up to ``most`` pixels each way; its border is repeated."""
    if most == 0 or len(pixels) == 0:
        return pixels
    count, height, width = pixels.shape[:3]
    down, right = rng.integers(-most, most + 1, (2, count))
    rows = (np.arange(height) + down[:, None]).clip(0, height - 1)
    columns = (np.arange(width) + right[:, None]).clip(0, width - 1)
    number = np.arange(count)[:, None, None]
    moved: Tensor = pixels[
        torch.from_numpy(number),
        torch.from_numpy(rows)[:, :, None],
        torch.from_numpy(columns)[:, None, :],
    ]
    return moved
