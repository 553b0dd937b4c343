"""Retrieval by text identity, and AUROC: the few numbers that phantoms are judged by here."""

from collections.abc import Sequence

import numpy as np

from simulations.phantoms.texture import Array

RANKS = (1, 5, 10)


def recall(similarity: Array, texts: Sequence[str]) -> dict[str, float]:
    """Recall both ways, macro over distinct texts.

    Several pictures share a text ("no acute finding"), so an answer counts if the *text* is right,
    and every distinct text weighs the same. Ties count by their expected value under a random
    order.

    Args:
        similarity: Shape (n, m): pictures by the sorted distinct texts.
        texts: The text of every picture.

    Returns:
        ``i2t@k`` and ``t2i@k`` for k in ``RANKS``, their means ``recall@k``, and ``gallery``.
    """
    distinct, own = np.unique(np.array(texts), return_inverse=True)
    rows = np.arange(len(own))
    score = similarity[rows, own][:, None]
    above, ties = (similarity > score).sum(1), (similarity == score).sum(1)
    weight = 1 / np.bincount(own)[own] / len(distinct)
    result: dict[str, float] = {"gallery": float(len(distinct))}
    for rank in RANKS:
        result[f"i2t@{rank}"] = float((np.clip((rank - above) / ties, 0, 1) * weight).sum())
        found = [
            _chance_in_top(similarity[:, text], own == text, rank) for text in range(len(distinct))
        ]
        result[f"t2i@{rank}"] = float(np.mean(found))
        result[f"recall@{rank}"] = (result[f"i2t@{rank}"] + result[f"t2i@{rank}"]) / 2
    return result


def _chance_in_top(scores: Array, right: Array, rank: int) -> float:
    """Probability that one of the right rows is in the top ``rank``, ties in random order."""
    best = scores[right].max()
    above, level = int((scores > best).sum()), scores == best
    places = min(rank - above, int(level.sum()))
    if places <= 0:
        return 0.0
    wrong, total = int((level & ~right).sum()), int(level.sum())
    missed = 1.0
    for place in range(places):
        missed *= max(wrong - place, 0) / (total - place)
    return 1.0 - missed


def auroc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve; nan with fewer than three of a kind. Ties count half."""
    positive, negative = scores[labels > 0], scores[labels <= 0]
    if min(len(positive), len(negative)) < 3:
        return float("nan")
    difference = positive[:, None] - negative[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
