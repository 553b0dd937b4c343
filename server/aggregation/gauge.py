"""Forms of a product B A that change its factors and not its value, computed in float64."""

import numpy as np

from server.aggregation.lowrank import Matrix, decompose
from shared.adapter import Array, Factor


def orthonormal_gauge(b: Array, a: Array, trained: Factor) -> tuple[Array, Array]:
    """Return factors of the same product, with the one that is not trained orthonormal.

    Then the norm of the frozen factor is one, so the trained one's gradient is bounded by
    the gradient of the whole matrix and the learning rate means the same in every round.
    Costs O((m + n) r^2): a thin SVD of the r x r core.

    Args:
        b: (m, r).
        a: (r, n).
        trained: ``B`` makes the rows of A orthonormal, ``A`` the columns of B.

    Returns:
        The new B and A. Where B is zero (nothing was learned yet) both stay as they are:
        any other B would do as well, and the seeded A is orthonormal already.
    """
    if not b.any():
        return b, a
    parts = decompose(b.astype(np.float64), a.astype(np.float64))
    rank = b.shape[1]
    if trained == "B":
        return _columns(parts.left * parts.sizes, rank), _columns(parts.right.T, rank).T.copy()
    sized = parts.sizes[:, None] * parts.right
    return _columns(parts.left, rank), _columns(sized.T, rank).T.copy()


def bounded(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the same product with at most min(m, n) columns of B and rows of A.

    Beyond that rank the product itself, with an identity beside it, is the smallest exact
    form in two factors; unlike a decomposition it costs one multiplication.
    """
    outputs, inputs = b.shape[0], a.shape[1]
    if b.shape[1] <= min(outputs, inputs):
        return b, a
    product = (b.astype(np.float64) @ a.astype(np.float64)).astype(np.float32)
    if inputs <= outputs:
        return product, np.eye(inputs, dtype=np.float32)
    return np.eye(outputs, dtype=np.float32), product


def _columns(matrix: Matrix, rank: int) -> Array:
    """Return a float32 matrix of ``rank`` columns, filled with zeros where it has fewer."""
    filled = np.zeros((matrix.shape[0], rank), np.float32)
    filled[:, : matrix.shape[1]] = matrix
    return filled
