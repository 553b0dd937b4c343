"""Gauge and folding: the factors change, the function does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation.base import start
from server.aggregation.folding import fold, folds_before
from server.aggregation.gauge import bounded, orthonormal_gauge
from shared.adapter import AdapterLayout, LayerShape, SharedAdapter, factor_name, products

SHAPES = [(12, 7, 3), (7, 12, 3), (5, 5, 5), (3, 20, 4), (20, 3, 4), (6, 6, 1)]


def pair(outputs, inputs, rank, seed=0, deficient=0):
    generator = np.random.default_rng(seed)
    b = generator.standard_normal((outputs, rank))
    b[:, :deficient] = 0.0
    return b.astype(np.float32), generator.standard_normal((rank, inputs)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trained", ["A", "B"])
@pytest.mark.parametrize("deficient", [0, 1])
def test_the_gauge_leaves_the_product_and_makes_the_frozen_factor_orthonormal(
    shape, trained, deficient
):
    b, a = pair(*shape, deficient=deficient if shape[2] > 1 else 0)
    new_b, new_a = orthonormal_gauge(b, a, trained)
    assert (new_b.shape, new_a.shape) == (b.shape, a.shape)
    assert new_b.dtype == new_a.dtype == np.float32
    assert new_a.flags.c_contiguous
    assert new_b.flags.c_contiguous
    np.testing.assert_allclose(new_b @ new_a, b @ a, atol=5e-6)
    gram = new_a @ new_a.T if trained == "B" else new_b.T @ new_b
    rank = min(shape)
    wanted = np.diag([1.0] * rank + [0.0] * (shape[2] - rank))
    np.testing.assert_allclose(gram, wanted, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES))
def test_the_gauge_changes_the_product_by_less_than_a_millionth(seed, shape):
    b, a = pair(*shape, seed=seed)
    for trained in ("A", "B"):
        new_b, new_a = orthonormal_gauge(b, a, trained)
        before = b.astype(np.float64) @ a
        error = np.linalg.norm(new_b.astype(np.float64) @ new_a - before)
        assert error <= 1e-6 * np.linalg.norm(before)


def test_the_gauge_does_not_depend_on_signs():
    b, a = pair(9, 6, 3)
    flips = np.array([1.0, -1.0, -1.0], np.float32)
    one = orthonormal_gauge(b, a, "B")
    other = orthonormal_gauge(b * flips, flips[:, None] * a, "B")
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_an_untrained_layer_keeps_its_seeded_factors():
    b, a = pair(9, 6, 3)
    zero = np.zeros_like(b)
    for trained in ("A", "B"):
        new_b, new_a = orthonormal_gauge(zero, a, trained)
        assert new_b is zero
        assert new_a is a


@pytest.mark.parametrize("shape", [(6, 9, 25), (9, 6, 7), (5, 5, 6)])
def test_a_high_rank_is_bounded_without_loss(shape):
    b, a = pair(*shape)
    new_b, new_a = bounded(b, a)
    smaller = min(shape)
    assert (new_b.shape, new_a.shape) == ((shape[0], smaller), (smaller, shape[1]))
    assert np.array_equal(new_b @ new_a, (b.astype(np.float64) @ a).astype(np.float32))


def test_a_low_rank_keeps_its_factors():
    b, a = pair(6, 9, 6)
    assert bounded(b, a)[0] is b


LAYOUT = AdapterLayout(
    (LayerShape("v", "image", 6, 9), LayerShape("t", "text", 8, 5)), rank=2, scaling=1.0
)


def filled(shared, seed, towers=("image", "text")):
    generator = np.random.default_rng(seed)
    factors = dict(shared.factors)
    for name in LAYOUT.names(["B"]):
        if LAYOUT.tower_of(name) in towers:
            shape = LAYOUT.shape_of(name)
            factors[name] = generator.standard_normal(shape).astype(np.float32)
    return SharedAdapter(factors, shared.residual, shared.folds)


def dense(shared, module):
    parts = [
        {n: v.astype(np.float64) for n, v in p.items()} for p in (shared.residual, shared.factors)
    ]
    return sum(products(part).get(module, 0.0) for part in parts)


def test_folding_leaves_the_function_and_starts_afresh():
    shared = filled(start(LAYOUT, 1), 0)
    for number in range(8):
        folded = fold(shared, LAYOUT, 1)
        assert folded.folds == shared.folds + 1
        for layer in LAYOUT.layers:
            np.testing.assert_allclose(
                dense(folded, layer.module), dense(shared, layer.module), rtol=1e-6, atol=2e-6
            )
            a = folded.factors[factor_name(layer.module, "A")]
            np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-6)
            assert not folded.factors[factor_name(layer.module, "B")].any()
            rank = folded.residual[factor_name(layer.module, "B")].shape[1]
            assert rank <= min(layer.outputs, layer.inputs)
        shared = filled(folded, number + 1)


def test_every_fold_draws_another_a():
    once = fold(filled(start(LAYOUT, 1), 0), LAYOUT, 1)
    twice = fold(filled(once, 1), LAYOUT, 1)
    name = factor_name("v", "A")
    assert not np.array_equal(once.factors[name], twice.factors[name])


def test_an_untrained_tower_is_not_folded():
    shared = filled(start(LAYOUT, 1), 0, towers=("image",))
    folded = fold(shared, LAYOUT, 1)
    for factor in ("A", "B"):
        name = factor_name("t", factor)
        assert np.array_equal(folded.factors[name], shared.factors[name])
        assert name not in folded.residual


def test_folds_every_so_many_rounds_and_not_before_the_first():
    assert [n for n in range(1, 13) if folds_before(n, 4)] == [5, 9]
    assert [n for n in range(1, 5) if folds_before(n, 1)] == [2, 3, 4]
    assert not any(folds_before(n, 0) for n in range(1, 20))
