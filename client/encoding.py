"""Records to features: the parts of many sites through the encoder at once.

Where a split's frozen layers are kept (``client.prefix_cache``) encoding starts from them. Nothing
behind a mask is ever encoded, and identical texts of a part are encoded once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Batch, PreparedSplit, Rows, pixels_of, shifted
from client.embeddings import chunk_of
from client.prefix_cache import Prefixes, kept_prefixes, pad_prefixes
from shared.model.encoder import DualEncoder


@dataclass(frozen=True)
class Features:
    """L2-normalised features of a batch, rows in the order of ``with_image``, ``with_text``."""

    image: Tensor
    text: Tensor


@dataclass(frozen=True)
class Part:
    """Records of one split that are encoded together with others'.

    Attributes:
        prepared: The split.
        batch: Its rows.
        adapter: Whose function: a row of the stack in use; 0 if there is none.
        shift: Pixels by which pictures are moved at most, and the generator that says how far.
    """

    prepared: PreparedSplit
    batch: Batch
    adapter: int = 0
    shift: tuple[int, np.random.Generator] | None = None


def encode(encoder: DualEncoder, parts: Sequence[Part], adapters: int = 1) -> list[Features]:
    """Return the features of every part; each part's identical texts are encoded once.

    Args:
        encoder: With a function, or a stack of functions, in use.
        parts: In the order of their adapters.
        adapters: How many the stack has.
    """
    images = _encode_images(encoder, parts, adapters)
    texts = _encode_texts(encoder, parts, adapters)
    return [Features(image, text) for image, text in zip(images, texts, strict=True)]


def _encode_images(encoder: DualEncoder, parts: Sequence[Part], adapters: int) -> Sequence[Tensor]:
    taken, counts, lengths = [], [0] * adapters, []
    for part in parts:
        rows = part.batch.with_image
        lengths.append(len(rows))
        counts[part.adapter] += len(rows)
        if len(rows):
            moved = part.shift is not None and part.shift[0] > 0
            kept = None if moved else kept_prefixes(encoder, part.prepared, "image")
            taken.append((part, rows, kept))
    if not taken:
        return [torch.zeros(0, 1, device=encoder.device)] * len(parts)
    if any(kept is not None for _, _, kept in taken):
        hidden = [
            encoder.image_prefix(_pixels(part, rows)) if kept is None else kept.of_rows(rows)[0]
            for part, rows, kept in taken
        ]
        found = encoder.encode_image_prefixes(torch.cat(hidden), counts)
    else:
        pixels = [_pixels(part, rows) for part, rows, _ in taken]
        together = pixels[0] if len(pixels) == 1 else torch.cat(_alike(pixels))
        found = encoder.encode_images(together, counts)
    return list(found.split(lengths))


def _pixels(part: Part, rows: Rows) -> Tensor:
    own = pixels_of(part.prepared, rows)
    return own if part.shift is None else shifted(own, *part.shift)


def _alike(pixels: Sequence[Tensor]) -> list[Tensor]:
    """Give grey pictures three channels if others of the same batch have them."""
    most = max(part.shape[3] for part in pixels)
    return [part.expand(-1, -1, -1, most) for part in pixels]


def _encode_texts(encoder: DualEncoder, parts: Sequence[Part], adapters: int) -> Sequence[Tensor]:
    taken: list[tuple[Prefixes | None, Rows, list[Sequence[int]]]] = []
    places, counts, lengths = [], [0] * adapters, []
    for part in parts:
        rows = part.batch.with_text
        lengths.append(len(rows))
        if not len(rows):
            continue
        repeat = encoder.precision == torch.bfloat16 and torch.is_grad_enabled()
        first, place = _distinct(part.prepared.text_numbers[rows].numpy(), repeat=repeat)
        places.append(place + sum(counts))
        counts[part.adapter] += len(first)
        distinct = rows[first]
        ids = [part.prepared.token_ids[row] for row in distinct]
        taken.append((kept_prefixes(encoder, part.prepared, "text"), distinct, ids))
    if not taken:
        return [torch.zeros(0, 1, device=encoder.device)] * len(parts)
    if any(kept is not None for kept, _, _ in taken):
        hidden, ends = pad_prefixes(
            [
                encoder.text_prefix(encoder.pad(ids)) if kept is None else kept.of_rows(distinct)
                for kept, distinct, ids in taken
            ]
        )
        found = encoder.encode_text_prefixes(hidden, ends, counts)
    else:
        found = encoder.encode_texts(
            encoder.pad([row for _, _, ids in taken for row in ids]), counts
        )
    index = torch.from_numpy(np.concatenate(places)).to(encoder.device)
    return list(found.index_select(0, index).split(lengths))


def _distinct(numbers: NDArray[np.int64], *, repeat: bool) -> tuple[Rows, Rows]:
    """Return which texts to encode, and where every record finds its own among them.

    Args:
        numbers: (n,) equal where texts are identical.
        repeat: Encode a few repetitions again: sites with equally many texts share one batched
            product, and in bfloat16 kernels for batches of ever other sizes cost more than
            is saved.
    """
    _, first, place = np.unique(numbers, return_index=True, return_inverse=True)
    if repeat and 2 * len(first) > len(numbers):
        everyone = np.arange(len(numbers))
        return everyone, everyone
    return first, place


def encode_all(encoder: DualEncoder, prepared: PreparedSplit, batch: Batch) -> Features:
    """Return the features of many rows, without gradients, a chunk at a time."""
    return encode_together(encoder, [(prepared, batch)])[0]


@torch.no_grad()
def encode_together(
    encoder: DualEncoder, wanted: Sequence[tuple[PreparedSplit, Batch]]
) -> list[Features]:
    """Return the features of many rows of some splits, without gradients.

    All are encoded by the view in use, in chunks that small splits fill together.
    """
    none: Rows = np.zeros(0, dtype=np.intp)
    images: list[list[Tensor]] = [[] for _ in wanted]
    texts: list[list[Tensor]] = [[] for _ in wanted]
    size = chunk_of(encoder.device)
    for chunk in _chunks([batch.with_image for _, batch in wanted], size):
        parts = [Part(wanted[number][0], Batch(none, rows, none)) for number, rows in chunk]
        for (number, _), found in zip(chunk, encode(encoder, parts), strict=True):
            images[number].append(found.image)
    for chunk in _chunks([batch.with_text for _, batch in wanted], size):
        parts = [Part(wanted[number][0], Batch(none, none, rows)) for number, rows in chunk]
        for (number, _), found in zip(chunk, encode(encoder, parts), strict=True):
            texts[number].append(found.text)
    empty = torch.zeros(0, 1, device=encoder.device)
    return [
        Features(torch.cat(image) if image else empty, torch.cat(text) if text else empty)
        for image, text in zip(images, texts, strict=True)
    ]


def _chunks(wanted: Sequence[Rows], size: int) -> Iterator[list[tuple[int, Rows]]]:
    """Yield chunks of at most ``size`` rows: which split, and which of its rows."""
    chunk: list[tuple[int, Rows]] = []
    room = size
    for number, rows in enumerate(wanted):
        start = 0
        while start < len(rows):
            some = rows[start : start + room]
            chunk.append((number, some))
            start += len(some)
            room -= len(some)
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk
