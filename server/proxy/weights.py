"""How much each site's embedding of a public item counts, by how well it tells the pair apart.

CreamFL (Yu et al., 2023, https://arxiv.org/abs/2302.08888): the embedding that a site gives to
a public item is scored against the other tower's common embeddings of all items, and the sites'
embeddings are averaged with the softmax of their scores. CreamFL has no temperatures (both 1).
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]


def contrast_weights(
    embeddings: Values,
    owners: NDArray[np.bool_],
    others: Values,
    temperature: float = 1.0,
    weight_temperature: float = 1.0,
) -> NDArray[np.float64]:
    """Return how much every site counts for every item, by contrast to the other items.

    Site k's score of item i is the log-probability that it assigns to the right partner,
    ``s_k(i) = log softmax_j(v_ki · o_j / temperature)[i]``, and its weight
    ``softmax_k(s_k(i) / weight_temperature)`` over the sites that own the tower.

    Args:
        embeddings: (K, N, d), the sites' L2-normalised embeddings of N items in one tower; rows
            of sites that do not own it are not looked at, whatever they hold.
        owners: (K,), which sites own the tower.
        others: (N, d), L2-normalised common embeddings of the same items in the other tower.
        temperature: Of the contrast among the items; small tells near partners apart.
        weight_temperature: Of the weights; small leaves the best site alone, large is the mean.

    Returns:
        (K, N) weights, 0 for sites that do not own the tower; every item's sum to 1, and all
        are 0 if nobody owns it.
    """
    weights = np.zeros(embeddings.shape[:2])
    if not owners.any():
        return weights
    partners = others.astype(np.float64).T
    scores = np.stack(
        [_scores(own.astype(np.float64) @ partners / temperature) for own in embeddings[owners]]
    )
    scaled = scores / weight_temperature
    raised = np.exp(scaled - scaled.max(axis=0))
    weights[owners] = raised / raised.sum(axis=0)
    return weights


def ensemble(embeddings: Values, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted mean of the sites' embeddings per item, of length one: (N, d).

    Args:
        embeddings: (K, N, d); rows of weight 0 are not looked at.
        weights: (K, N).
    """
    total = np.zeros(embeddings.shape[1:])
    for own, weight in zip(embeddings, weights, strict=True):
        if weight.any():
            total += weight[:, None] * own
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.where(length > 0, length, 1.0)


def _scores(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log softmax of every row at its diagonal: (N, N) -> (N,)."""
    largest = similarities.max(axis=1)
    spread = np.exp(similarities - largest[:, None]).sum(axis=1)
    scores: NDArray[np.float64] = np.diagonal(similarities) - largest - np.log(spread)
    return scores
