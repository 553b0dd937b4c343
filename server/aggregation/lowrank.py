"""Products of low-rank factors: exact means, and the nearest product of a given rank.

A mean of products ``sum p_k B_k A_k`` is one product of stacked factors,
``[p_1 B_1 ... p_K B_K] [A_1; ...; A_K]``. Everything here works on such factors, in float64;
no matrix of the layer's own size is made. NumPy only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.adapter import Array

Matrix = NDArray[np.float64]

_NARROW = 16
"""Up to so many times the wanted rank a stack is decomposed whole; wider ones by iteration."""
_CONVERGED = 1e-8
"""Largest residual of a singular pair, in units of the largest singular value squared."""
_NOTHING = 1e-7
"""Singular values below this share of the largest are rounding errors of float32 factors."""


@dataclass(frozen=True)
class Decomposition:
    """``left diag(sizes) right`` of a product.

    Attributes:
        left: (m, k), orthonormal columns.
        sizes: (k,), descending.
        right: (k, n), orthonormal rows; the largest entry of each is positive.
    """

    left: Matrix
    sizes: Matrix
    right: Matrix

    def leading(self, rank: int) -> "Decomposition":
        """Return the ``rank`` largest singular values with their vectors."""
        return Decomposition(self.left[:, :rank], self.sizes[:rank], self.right[:rank])

    def balanced(self, rank: int) -> tuple[Array, Array]:
        """Return float32 B (m, rank) and A (rank, n) that share the sizes evenly.

        Where the product's own rank is smaller, the further rows of A are orthonormal and the
        further columns of B zero: both factors at zero would never learn.
        """
        kept = self.leading(rank)
        count = len(kept.sizes)
        real = kept.sizes > _NOTHING * max(float(self.sizes[0]), np.finfo(np.float64).tiny)
        roots = np.sqrt(np.where(real, kept.sizes, 0.0))
        b = np.zeros((kept.left.shape[0], rank), np.float32)
        a = np.zeros((rank, kept.right.shape[1]), np.float32)
        b[:, :count] = kept.left * roots
        a[:count] = np.where(real, roots, 1.0)[:, None] * kept.right
        return b, a


def decompose(left: Matrix, right: Matrix) -> Decomposition:
    """Return the singular value decomposition of ``left @ right``.

    By thin QR of both factors and the decomposition of the small core: O((m + n) k^2) for k
    columns of ``left``, where the product itself would cost O(m n min(m, n)).

    Args:
        left: (m, k).
        right: (k, n).
    """
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(right.T)
    u, sizes, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return _signed(left_basis @ u, sizes, v @ right_basis.T)


def nearest(left: Matrix, right: Matrix, rank: int, guess: Matrix | None = None) -> Decomposition:
    """Return the product of rank ``rank`` nearest to ``left @ right`` (Eckart and Young, 1936).

    Many sites make a stack as wide as the layer, whose core is no longer small. Then the leading
    singular vectors are found by block Krylov iteration (Musco and Musco, 2015,
    https://arxiv.org/abs/1504.05477), which only multiplies the factors with thin blocks; where
    it does not converge, because no singular values stand out, the whole is decomposed.

    Args:
        left: (m, k).
        right: (k, n).
        rank: At most so many singular values are returned.
        guess: (g, n), rows that probably span much of the result; only speed depends on it.
    """
    width, small = left.shape[1], min(left.shape[0], right.shape[1])
    if width > _NARROW * rank and small > _NARROW * rank:
        found = _krylov(left, right, rank, guess)
        if found is not None:
            return found
    return decompose(left, right).leading(rank)


def compact(left: Matrix, right: Matrix) -> tuple[Array, Array]:
    """Return the same product as float32 factors of no more columns than its own rank.

    A stack as wide as the layer comes back as it is.

    Args:
        left: (m, k).
        right: (k, n).
    """
    if left.shape[1] >= min(left.shape[0], right.shape[1]):
        return left.astype(np.float32), right.astype(np.float32)
    parts = decompose(left, right)
    kept = parts.leading(max(1, int((parts.sizes > _NOTHING * parts.sizes[0]).sum())))
    return (kept.left * kept.sizes).astype(np.float32), kept.right.astype(np.float32)


def _krylov(left: Matrix, right: Matrix, rank: int, guess: Matrix | None) -> Decomposition | None:
    """Return the leading part of a product, or ``None`` if no basis of moderate size has it."""
    blocks, images, backs = _blocks(left, right, rank, guess), [], []
    basis: list[Matrix] = []
    for block, image, back in blocks:
        basis.append(block)
        images.append(image)
        backs.append(back)
        if len(basis) == 1:
            continue
        q, core = np.linalg.qr(np.hstack(images))
        u, sizes, w = np.linalg.svd(core)
        u, sizes, w = u[:, :rank], sizes[:rank], w[:rank]
        right_vectors = w @ np.hstack(basis).T
        if sizes[0] == 0.0:
            return None
        # M^T M v = sizes^2 v holds for a singular vector; by how much it fails is the error.
        missed = w @ np.hstack(backs).T - np.square(sizes)[:, None] * right_vectors
        if np.linalg.norm(missed, axis=1).max() <= _CONVERGED * sizes[0] ** 2:
            return _signed(q @ u, sizes, right_vectors)
    return None


def _blocks(
    left: Matrix, right: Matrix, rank: int, guess: Matrix | None
) -> Iterator[tuple[Matrix, Matrix, Matrix]]:
    """Yield orthonormal blocks V of the Krylov space, with M V and M^T M V."""
    inputs = right.shape[1]
    # A fixed seed: the result must not depend on anything but the factors.
    random = np.random.default_rng(0).standard_normal((inputs, rank))
    block = random if guess is None else np.hstack([guess.T, random])
    basis = np.zeros((inputs, 0))
    while basis.shape[1] + block.shape[1] <= min(left.shape[0], inputs) // 2:
        for _ in range(2):  # once is not enough against what rounding leaves
            block = block - basis @ (basis.T @ block)
            block = np.linalg.qr(block)[0]
        image = left @ (right @ block)
        back = right.T @ (left.T @ image)
        yield block, image, back
        basis, block = np.hstack([basis, block]), back


def _signed(left: Matrix, sizes: Matrix, right: Matrix) -> Decomposition:
    """Fix the common sign of each pair of vectors: the largest entry of ``right`` is positive."""
    peak = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    signs = np.where(peak < 0, -1.0, 1.0)
    return Decomposition(left * signs.T, sizes, right * signs)
