"""Forms of a product B A that change its factors and not its value, computed in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.adapter import Array, Factor

_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class _Decomposition:
    """U diag(sizes) V of a product; U (m, k) and V (k, n) orthonormal, k <= min(m, n)."""

    left: _Matrix
    sizes: NDArray[np.float64]
    right: _Matrix


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
    parts = _decompose(b, a)
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


def _decompose(b: Array, a: Array) -> _Decomposition:
    left_basis, left_core = np.linalg.qr(b.astype(np.float64))
    right_basis, right_core = np.linalg.qr(a.T.astype(np.float64))
    u, sizes, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    left, right = left_basis @ u, v @ right_basis.T
    # Singular vectors are unique up to a common sign: the largest entry of V is positive.
    peak = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    signs = np.where(peak < 0, -1.0, 1.0)
    return _Decomposition(left * signs.T, sizes, right * signs)


def _columns(matrix: _Matrix, rank: int) -> Array:
    """Return a float32 matrix of ``rank`` columns, filled with zeros where it has fewer."""
    filled = np.zeros((matrix.shape[0], rank), np.float32)
    filled[:, : matrix.shape[1]] = matrix
    return filled
