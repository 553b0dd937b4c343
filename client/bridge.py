"""From a site's own embedding space into the common one: a rotation, worked out once.

Encoders that were trained apart put the same picture in unrelated directions, even where their
spaces are equally wide, and so far apart no contrast with another's features could tell anything.
The bridge is the orthogonal map that brings the site's frozen base closest to the common features
of the public items (orthogonal Procrustes, Schoenemann, 1966,
https://doi.org/10.1007/BF02289451). It turns both towers alike and so changes no similarity
between the site's own features; a space of another width is embedded, or projected.
"""

import numpy as np

from shared.adapter import Array


def bridge_between(own: Array, common: Array) -> Array:
    """Return the orthogonal map (k, d) that brings ``own`` closest to ``common``.

    Args:
        own: (n, k) L2-normalised features of the site's base, both towers one below the other.
        common: (n, d) L2-normalised common features of the same items.

    Returns:
        ``R`` with ``R R^T = 1`` (k <= d) or ``R^T R = 1`` (k > d).
    """
    product = own.astype(np.float64).T @ common.astype(np.float64)
    left, _, right = np.linalg.svd(product, full_matrices=False)
    return np.ascontiguousarray(left @ right, dtype=np.float32)


def crossed(features: Array, bridge: Array) -> Array:
    """Return L2-normalised features (n, d) in the common space."""
    brought = features @ bridge
    length = np.linalg.norm(brought, axis=1, keepdims=True)
    return np.asarray(brought / np.maximum(length, 1e-12), dtype=np.float32)
