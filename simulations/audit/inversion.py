"""What a low-rank update says of the records that it was made from.

With ``y = W x + s B (A x)`` the gradient of A is ``s B^T (dy) x^T``, summed over positions: every
row lies in the span of the layer's inputs (Petrov et al., 2024, https://arxiv.org/abs/2405.15586,
for whole layers). Where one position alone has a gradient, as in the last layer of a tower that
pools one, all rows are that input, up to a length that the norm before the layer gives away. In
the first layer the inputs are tokens from a known list, so each can be held against the span.

NumPy only; what is attacked is a plain array.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_NEGLIGIBLE = 1e-4


def pooled_direction(rows: Numbers) -> Numbers:
    """Return the direction that the rows of a gradient of A have in common, (n,), of length 1.

    Args:
        rows: (r, n); of one record's gradient they are all multiples of its input.
    """
    return np.asarray(np.linalg.svd(rows, full_matrices=False)[2][0], np.float64)


def normed_input(direction: Numbers, gain: Numbers, bias: Numbers) -> Numbers:
    """Return the layer's input along a direction, (n,): sign and length from the norm before it.

    The input is ``gain * u + bias`` with u of mean 0 and variance 1. Of the multiples of the
    direction two have the variance; the one whose mean is closer to 0 is taken.

    Args:
        direction: (n,).
        gain: (n,) of the layer norm.
        bias: (n,) of the same.
    """
    along, offset = direction / gain, bias / gain
    # |t along - offset|^2 = n
    a, b = float(along @ along), float(along @ offset)
    c = float(offset @ offset) - len(gain)
    root = np.sqrt(max(b * b - a * c, 0.0))
    both = [(b + root) / a, (b - root) / a]
    best = min(both, key=lambda length: abs(float(np.mean(length * along - offset))))
    return np.asarray(best * direction)


def spanned(rows: Numbers) -> Numbers:
    """Return an orthonormal basis of what rows span, (k, n); k is at most the number of rows."""
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(basis[values > _NEGLIGIBLE * values[0]]) if values[0] > 0 else basis[:0]


def share_inside(vectors: Numbers, basis: Numbers) -> Numbers:
    """Return which share of each vector's squared norm lies in a span, (m,).

    Args:
        vectors: (..., n).
        basis: (k, n) orthonormal.
    """
    inside = np.square(vectors @ basis.T).sum(-1)
    return np.asarray(inside / np.square(vectors).sum(-1))


def read_token(basis: Numbers, known: Numbers) -> int:
    """Return the token whose input at one position lies best in a span.

    Args:
        basis: (k, n) of the gradients of all A that read the tower's first inputs.
        known: (tokens, n) the inputs that every token would give at this position.
    """
    return int(share_inside(known, basis).argmax())


def cosine(one: Numbers, other: Numbers, middle: Numbers) -> float:
    """Return the cosine of two inputs about what inputs have in common.

    Args:
        one: (n,).
        other: (n,).
        middle: (n,) mean input of records that everybody may know.
    """
    a, b = one - middle, other - middle
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
