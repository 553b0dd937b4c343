import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import TrainingError
from shared.privacy.clipping import clip, l2_norm


def test_a_change_within_the_norm_keeps_its_bits():
    change = {"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}
    same, clipped = clip(change, 5.0)
    assert not clipped
    assert all(same[name] is change[name] for name in change)


def test_scales_all_factors_together():
    change = {"a": np.array([3.0], np.float32), "b": np.array([4.0], np.float32)}
    short, clipped = clip(change, 1.0)
    assert clipped
    np.testing.assert_allclose([short["a"][0], short["b"][0]], [0.6, 0.8], rtol=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.floats(1e-2, 1e2))
def test_is_never_longer_than_allowed(values, norm):
    short, _ = clip({"a": np.array(values, np.float32)}, norm)
    assert l2_norm(short) <= norm


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    st.sampled_from([0.5, 1 - 1e-8, 1 - 1e-10, 1.0, 1 + 1e-10, 2.0]),
)
def test_near_the_limit_the_exact_norm_decides(values, share):
    change = {"a": np.array(values, np.float32), "b": np.array(values[::-1], np.float32)}
    norm = l2_norm(change)
    limit = max(norm * share, 1e-30)
    same, clipped = clip(change, limit)
    assert clipped == (norm > limit)
    if not clipped:
        assert all(same[name] is change[name] for name in change)


def test_a_change_of_nothing_is_within_any_norm():
    assert clip({}, 1.0) == ({}, False)


def test_norm_is_summed_in_double_precision():
    assert l2_norm({"a": np.full(10**6, 1e-4, np.float32)}) == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_what_is_not_finite(value):
    with pytest.raises(TrainingError) as caught:
        clip({"a": np.array([value], np.float32)}, 1.0)
    assert caught.value.reason == "change-not-finite"
