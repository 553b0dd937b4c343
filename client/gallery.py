"""Queries of the report's gallery, picked by rule: what two models show first for a text.

One query per quarter of the rank at which the model in use first finds a match, the worst
quarter before all others, so that failure is always on the page. Pictures leave only if the
data are phantoms, or public with a licence; anything else gives an empty gallery.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.data.records import SiteData
from client.embeddings import Embedder, embed_images, embed_texts
from shared.metrics.bootstrap import Floats
from shared.metrics.retrieval import TextGallery, display_order, similarity, text_gallery
from shared.model.view import AdapterView
from shared.results import DatasetOrigin, GalleryQuery, Model, Picture
from shared.seeding import derive_seed

SHOWN = 5
"""Pictures per query and model."""

_QUARTERS = (4, 1, 3, 2)
"""In this order queries are taken; 4 is the worst."""

_IN_USE: tuple[Model, ...] = ("personal", "shared", "local")


@dataclass(frozen=True)
class _Ranking:
    """Order of all images for every text, and where the first match is (1 is first)."""

    order: NDArray[np.int64]
    first_match: NDArray[np.int64]


def gallery(
    encoder: Embedder,
    data: SiteData,
    views: Mapping[Model, AdapterView],
    queries: int,
    seed: int,
) -> tuple[list[GalleryQuery], dict[str, NDArray[np.uint8]]]:
    """Pick queries and collect the pictures that two models put first.

    Args:
        encoder: The base with its adapters; left in the last view used.
        data: The site's records.
        views: Models; compared are ``base`` and the first of personal, shared and local.
        queries: How many to pick, 0 for none.
        seed: Of the choice and of the order of ties.

    Returns:
        Queries from the best to the worst quarter, and pixels (h, w, c) by picture key. Both
        empty if the pictures may not be shown or the test split has nothing to retrieve.
    """
    test = data.splits["test"]
    texts = text_gallery(test.texts, test.has_text, test.has_image)
    asked = np.unique(texts.own[texts.own >= 0])
    compared = _compared(views)
    if not (may_show(data.origin) and queries and compared and len(asked) and len(texts.own) > 1):
        return [], {}
    rows = np.flatnonzero(test.has_image)
    rankings: dict[Model, _Ranking] = {}
    for model in compared:
        images = embed_images(encoder, views[model], test, rows)
        scores = similarity(images, embed_texts(encoder, views[model], test, texts.texts))
        rankings[model] = _rank(scores, texts, seed)
    chosen = choose(rankings[compared[-1]].first_match[asked], queries, seed)
    keys: dict[int, str] = {}
    result = []
    for position, quarter in chosen:
        text = int(asked[position])
        found = {
            model: _pictures(ranking.order[text], texts.own == text, data, rows, keys)
            for model, ranking in rankings.items()
        }
        first = {model: int(ranking.first_match[text]) for model, ranking in rankings.items()}
        result.append(
            GalleryQuery(
                site=data.name,
                quarter=quarter,
                text=texts.texts[text],
                first_match=first,
                found=found,
            )
        )
    return result, {key: np.asarray(test.pixels[row]) for row, key in keys.items()}


def may_show(origin: DatasetOrigin) -> bool:
    """Whether pictures and texts of a data set may enter a report; no is the default."""
    return origin.origin == "phantom" or (origin.origin == "public" and bool(origin.licence))


def choose(first_match: NDArray[np.int64], queries: int, seed: int) -> list[tuple[int, int]]:
    """Pick queries by quarter of their first-match rank.

    Args:
        first_match: (n,) rank of the first match of every query, 1 is best.
        queries: How many to pick.
        seed: Of the choice within a quarter.

    Returns:
        (position in ``first_match``, quarter 1..4) sorted by quarter; quarter 4 comes first
        into the choice, so it is there whenever anything is.
    """
    generator = np.random.default_rng(derive_seed(seed, "gallery"))
    count = len(first_match)
    ordered = np.lexsort((generator.permutation(count), first_match))
    quarter_of = -(-4 * np.arange(1, count + 1) // count)
    left = {q: list(generator.permutation(ordered[quarter_of == q])) for q in _QUARTERS}
    chosen: list[tuple[int, int]] = []
    while len(chosen) < min(queries, count):
        for quarter in _QUARTERS:
            if left[quarter] and len(chosen) < queries:
                chosen.append((int(left[quarter].pop(0)), quarter))
    return sorted(chosen, key=lambda pick: (pick[1], first_match[pick[0]], pick[0]))


def _compared(views: Mapping[Model, AdapterView]) -> list[Model]:
    wanted: tuple[Model, ...] = ("base", *[m for m in _IN_USE if m in views][:1])
    return [model for model in wanted if model in views]


def _rank(scores: Floats, texts: TextGallery, seed: int) -> _Ranking:
    order = np.stack(
        [
            display_order(scores[:, text], derive_seed(seed, "ties", text))
            for text in range(len(texts.texts))
        ]
    )
    match = texts.own[order] == np.arange(len(texts.texts))[:, None]
    return _Ranking(order, match.argmax(1).astype(np.int64) + 1)


def _pictures(
    order: NDArray[np.int64],
    match: NDArray[np.bool_],
    data: SiteData,
    rows: NDArray[np.intp],
    keys: dict[int, str],
) -> list[Picture]:
    result = []
    for image in order[:SHOWN]:
        row = int(rows[image])
        if row not in keys:
            pixels = np.ascontiguousarray(data.splits["test"].pixels[row])
            # The key names content, not a file or a patient; equal pictures share it.
            keys[row] = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        result.append(Picture(image=keys[row], match=bool(match[image])))
    return result
