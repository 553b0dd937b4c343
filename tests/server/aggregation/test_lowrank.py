"""Products of stacked factors: the dense computation, without its matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation import lowrank
from server.aggregation.lowrank import compact, decompose, nearest


def whole(parts):
    return (parts.left * parts.sizes) @ parts.right


def dense_nearest(matrix, rank):
    u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sizes[:rank]) @ v[:rank], sizes


def sites(outputs, inputs, count, rank, spread, seed=0):
    """Stacked factors of sites that share a direction and differ by ``spread`` around it."""
    generator = np.random.default_rng(seed)
    common_b = generator.standard_normal((1, outputs, rank))
    common_a = generator.standard_normal((1, rank, inputs))
    b = common_b + spread * generator.standard_normal((count, outputs, rank))
    a = common_a + spread * generator.standard_normal((count, rank, inputs))
    left = (b / count).transpose(1, 0, 2).reshape(outputs, -1)
    return left, a.reshape(-1, inputs)


def test_by_hand():
    """Half of diag(2, 0) and half of diag(0, 4) are diag(1, 2); its best rank 1 is diag(0, 2)."""
    left = np.array([[1.0, 0.0], [0.0, 2.0]])  # the B of both sites, times 1/2
    right = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(whole(decompose(left, right)), np.diag([1.0, 2.0]), atol=1e-15)
    np.testing.assert_allclose(whole(nearest(left, right, 1)), np.diag([0.0, 2.0]), atol=1e-15)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_narrow_stacks_are_cut_as_by_eckart_and_young(outputs, inputs, width, rank, seed):
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((outputs, width))
    right = generator.standard_normal((width, inputs))
    wanted, sizes = dense_nearest(left @ right, rank)
    found = whole(nearest(left, right, rank))
    np.testing.assert_allclose(found, wanted, atol=1e-9 * sizes[0])
    missed = np.linalg.norm(left @ right - found)
    assert missed == pytest.approx(np.linalg.norm(sizes[rank:]), abs=1e-9 * sizes[0])


@pytest.mark.parametrize("shape", [(160, 96), (96, 160), (128, 128)])
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("guessed", [True, False])
def test_wide_stacks_are_cut_by_iteration_to_the_same(shape, spread, guessed):
    left, right = sites(*shape, count=60, rank=4, spread=spread)
    guess = right.reshape(60, 4, -1).mean(axis=0) if guessed else None
    assert left.shape[1] > max(shape)
    assert lowrank._krylov(left, right, 4, guess) is not None
    wanted, sizes = dense_nearest(left @ right, 4)
    error = np.linalg.norm(whole(nearest(left, right, 4, guess)) - wanted)
    assert error <= 1e-6 * np.linalg.norm(sizes[:4])


def test_where_nothing_stands_out_the_whole_is_decomposed():
    generator = np.random.default_rng(3)
    left = np.linalg.qr(generator.standard_normal((80, 80)))[0]
    right = np.linalg.qr(generator.standard_normal((80, 80)))[0]
    right[0] *= 1.01  # 80 singular values of 1 or 1.01
    found = nearest(left, right, 4)
    assert found.sizes[0] == pytest.approx(1.01)
    np.testing.assert_allclose(found.sizes[1:], 1.0, rtol=1e-9)


def test_a_start_that_misses_the_answer_finds_it_all_the_same():
    left, right = sites(128, 128, count=40, rank=4, spread=0.5)
    beside = decompose(left, right).right[4:8]  # singular vectors too, but not the wanted ones
    wanted, _ = dense_nearest(left @ right, 4)
    np.testing.assert_allclose(whole(nearest(left, right, 4, beside)), wanted, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 30), st.integers(0, 99))
def test_compact_keeps_the_product_in_as_few_columns_as_it_has_rank(outputs, inputs, width, seed):
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((outputs, 1)) @ generator.standard_normal((1, width))
    right = generator.standard_normal((width, inputs))
    b, a = compact(left, right)
    assert b.dtype == a.dtype == np.float32
    tolerance = 1e-6 * (np.linalg.norm(left) * np.linalg.norm(right))
    np.testing.assert_allclose(b.astype(np.float64) @ a, left @ right, atol=tolerance)
    assert b.shape[1] == (width if width >= min(outputs, inputs) else 1)


def test_directions_without_size_can_still_be_learned():
    left, right = np.outer([3.0, 4.0, 0.0], [1.0, 0.0]), np.eye(2, 4)
    b, a = decompose(left, right).balanced(2)
    np.testing.assert_allclose(b @ a, left @ right, atol=1e-6)
    assert not b[:, 1].any()
    assert np.linalg.norm(a[1]) == pytest.approx(1.0)
    b, a = decompose(left, right).balanced(3)  # more than the product can have
    assert (b.shape, a.shape) == ((3, 3), (3, 4))
    b, a = decompose(0 * left, right).balanced(2)
    assert not b.any()
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-6)
