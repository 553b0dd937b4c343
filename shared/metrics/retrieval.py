"""Recall@k in both directions, by text identity.

Many records share a text ("no acute finding"), so row i is not *the* answer to row i: an answer
is right if its text is identical. The gallery of texts is the distinct texts of the split, the
gallery of images all its images, whatever the queries are. Every distinct text weighs the same
(macro), or the commonest sentence would own the score. Ties count by their expected value under
a random order, so a constant encoder gets chance and not luck.

The queries are the records with both an image and a text. Their hits and weights are returned
record by record: ``sum(hits * weights * w) / sum(weights * w)`` is the recall under bootstrap
weights w, with the galleries left as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.metrics import RANKS
from shared.metrics.bootstrap import Floats

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

DECIMALS = 6
"""Scores are compared to this many decimals: closer ones differ by float32 rounding only."""

_BLOCK = 2**22
"""Similarities held at once, about 32 MiB."""


@dataclass(frozen=True)
class TextGallery:
    """The distinct texts of a split and which image belongs to which.

    Attributes:
        texts: Distinct texts, sorted.
        own: (n images,) index of each image's text, -1 for an image without one.
    """

    texts: tuple[str, ...]
    own: Ints


@dataclass(frozen=True)
class RetrievalHits:
    """Hits of one model, one entry per query record.

    Attributes:
        queries: (q,) row of the image gallery of each query.
        weights: (q,) macro weights, summing to 1.
        image_to_text: Per k, (q,) probability that the image's text is among the first k.
        text_to_image: Per k, (q,) probability that an image of the query's text is.
    """

    queries: Ints
    weights: Floats
    image_to_text: Mapping[int, Floats]
    text_to_image: Mapping[int, Floats]


def text_gallery(texts: Sequence[str], has_text: Bools, has_image: Bools) -> TextGallery:
    """Collect the distinct texts of a split and the text index of every image.

    Args:
        texts: n texts; what lies behind ``has_text == False`` is ignored.
        has_text: (n,) whether a record has a text.
        has_image: (n,) whether a record has an image; ``own`` follows their order.
    """
    distinct = sorted({text for text, there in zip(texts, has_text, strict=True) if there})
    index = {text: number for number, text in enumerate(distinct)}
    own = [
        index[text] if there else -1
        for text, there, image in zip(texts, has_text, has_image, strict=True)
        if image
    ]
    return TextGallery(tuple(distinct), np.array(own, dtype=np.int64))


def similarity(images: NDArray[np.floating], texts: NDArray[np.floating]) -> Floats:
    """Return cosine similarities (images, texts) of unit embeddings, ready to be ranked."""
    return np.round(images.astype(np.float64) @ texts.astype(np.float64).T, DECIMALS)


def retrieve(
    images: NDArray[np.floating],
    texts: NDArray[np.floating],
    own: Ints,
    ranks: Sequence[int] = RANKS,
) -> RetrievalHits:
    """Return the hits of every query in both directions.

    Similarities are computed block by block, so memory does not grow with the product of the two
    galleries.

    Args:
        images: (n, d) unit embeddings of all images.
        texts: (m, d) unit embeddings of the distinct texts.
        own: (n,) index of each image's text, or -1.
        ranks: The values of k.

    Raises:
        ValueError: If no image has a text.
    """
    queries = np.flatnonzero(own >= 0)
    if not len(queries):
        raise ValueError("retrieve needs at least one image with a text")
    answer = own[queries]
    counts = np.bincount(answer, minlength=len(texts))
    weights = 1 / counts[answer] / np.count_nonzero(counts)
    by_image = [
        _chance_of_text(similarity(images[rows], texts), own[rows], ranks)
        for rows in _blocks(queries, len(texts))
    ]
    asked, place = np.unique(answer, return_inverse=True)
    by_text = [
        _chance_of_image(similarity(images, texts[columns]), own[:, None] == columns, ranks)
        for columns in _blocks(asked, len(images))
    ]
    to_text, to_image = np.concatenate(by_image, axis=1), np.concatenate(by_text, axis=1)
    return RetrievalHits(
        queries,
        weights,
        {k: to_text[i] for i, k in enumerate(ranks)},
        {k: to_image[i][place] for i, k in enumerate(ranks)},
    )


def _blocks(numbers: Ints, width: int) -> list[Ints]:
    step = max(1, _BLOCK // max(1, width))
    return [numbers[start : start + step] for start in range(0, len(numbers), step)]


def _chance_of_text(scores: Floats, answer: Ints, ranks: Sequence[int]) -> Floats:
    """Return (ranks, rows) chances that a row's one right column is among its first k."""
    right = np.take_along_axis(scores, answer[:, None], axis=1)
    above, level = (scores > right).sum(1), (scores == right).sum(1)
    return np.stack([np.clip((k - above) / level, 0, 1) for k in ranks])


def _chance_of_image(scores: Floats, relevant: Bools, ranks: Sequence[int]) -> Floats:
    """Return (ranks, columns) chances that one of a column's right rows is among its first k."""
    best = np.where(relevant, scores, -np.inf).max(0)
    above = (scores > best).sum(0)
    level = scores == best
    total, wrong = level.sum(0), (level & ~relevant).sum(0)
    result = np.empty((len(ranks), scores.shape[1]))
    for row, k in enumerate(ranks):
        missed = np.ones(scores.shape[1])
        # The tied images fill the places left one after the other; each is wrong with
        # (wrong left / tied left), so the product is the chance that no right one is there.
        places = np.clip(k - above, 0, total)
        for place in range(int(places.max())):
            chance = np.maximum(wrong - place, 0) / np.maximum(total - place, 1)
            missed *= np.where(place < places, chance, 1.0)
        result[row] = 1.0 - missed
    return result


def recall(hits: Floats, weights: Floats, resamples: Floats) -> Floats:
    """Return the weighted recall for every row of bootstrap weights.

    Args:
        hits: (q,) probabilities of a hit.
        weights: (q,) macro weights.
        resamples: (b, q) bootstrap weights of the query records.

    Returns:
        (b,) recalls, NaN where no query was drawn.
    """
    total = resamples @ weights
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((resamples @ (hits * weights)) / total, dtype=np.float64)


def display_order(scores: Floats, seed: int) -> Ints:
    """Return images from best to worst for one text, ties in a seeded random order.

    Args:
        scores: (n,) similarity of every image to the text.
        seed: Of the order of ties.
    """
    luck = np.random.default_rng(seed).permutation(len(scores))
    return np.lexsort((luck, -scores)).astype(np.int64)
