import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import WireError
from shared.fixedpoint import LARGEST, choose_scale, decode, encode


def test_chooses_the_largest_power_of_two_that_cannot_wrap():
    scale = choose_scale(total_weight=10, clip_norm=16.0, sites=5)
    assert scale == 2.0**23
    assert 160 * scale <= LARGEST - 5 < 160 * 2 * scale


@given(st.integers(1, 10**6), st.floats(1e-3, 1e4), st.integers(1, 10**4))
def test_scale_is_a_power_of_two_within_the_bound(weight, norm, sites):
    scale = choose_scale(weight, norm, sites)
    assert weight * norm * scale <= LARGEST - sites < weight * norm * scale * 2
    assert np.frexp(scale)[0] == 0.5


@pytest.mark.parametrize(("weight", "norm", "sites"), [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0)])
def test_refuses_arguments_that_are_not_positive(weight, norm, sites):
    with pytest.raises(ValueError, match="positive"):
        choose_scale(weight, norm, sites)


def test_multiplies_by_weight_and_scale_and_rounds():
    change = {"f": np.array([[0.5, -0.25, 0.3]], np.float32)}
    steps = encode(change, lambda _: 3, 8.0)["f"]
    assert steps.dtype == np.uint32
    assert steps.view(np.int32).tolist() == [[12, -6, 7]]  # 3 * 8 * 0.3 = 7.2
    assert decode(steps, 3, 8.0).tolist() == [[0.5, -0.25, np.float32(7 / 24)]]


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20), st.permutations(range(4)))
def test_weighted_mean_is_exact_to_a_step_and_has_no_order(values, order):
    weights, sites = [1, 2, 3, 5], 4
    changes = [np.array(values, np.float32) * (k - 1) for k in range(sites)]
    scale = choose_scale(sum(weights), 10.0, sites)
    sent = [
        encode({"f": c}, lambda _, w=w: w, scale)["f"]
        for c, w in zip(changes, weights, strict=True)
    ]
    total = np.sum([sent[k] for k in order], axis=0, dtype=np.uint32)
    assert np.array_equal(total, np.sum(sent, axis=0, dtype=np.uint32))
    mean = sum(w * c.astype(np.float64) for c, w in zip(changes, weights, strict=True)) / sum(
        weights
    )
    step = sites / 2 / scale / sum(weights)
    assert np.abs(decode(total, sum(weights), scale) - mean).max() <= step + 1e-6 * abs(mean).max()


@given(st.data())
def test_all_factors_together_get_the_bits_that_each_gets_alone(data):
    names = ["a", "b", "c", "d"]
    shapes = st.tuples(st.integers(0, 3), st.integers(1, 4))
    change = {
        name: np.array(
            data.draw(st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12)), np.float32
        )[: rows * columns].reshape(rows, columns)
        for name, (rows, columns) in ((name, data.draw(shapes)) for name in names)
    }
    weights = {name: data.draw(st.integers(1, 3)) for name in names}
    change["d"] = change["d"].T
    together = encode(change, weights.__getitem__, 2.0**10)
    assert list(together) == names
    for name, values in change.items():
        alone = np.rint(values.astype(np.float64) * (weights[name] * 2.0**10)).astype(np.int32)
        assert together[name].dtype == np.uint32
        assert together[name].shape == values.shape
        assert np.array_equal(together[name].view(np.int32), alone)


def test_the_factor_that_does_not_fit_is_named():
    fits = np.ones(3, np.float32)
    change = {"one": fits, "two": fits * 3e9, "three": fits * np.nan}
    with pytest.raises(WireError, match=r"^two: .*with 1 steps per unit"):
        encode(change, lambda name: 2 if name == "one" else 1, 1.0)
    with pytest.raises(WireError, match=r"^two: "):
        encode({"one": fits, "two": np.full(2, -(2.0**31), np.float32)}, lambda _: 1, 1.0)
    assert encode({}, lambda _: 1, 1.0) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e9])
def test_never_wraps_a_value_that_does_not_fit(value):
    with pytest.raises(WireError, match=r"f: .*clip it first"):
        encode({"f": np.array([value], np.float32)}, lambda _: 1, 1.0)
