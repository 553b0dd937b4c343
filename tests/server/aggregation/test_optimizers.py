"""Momentum, Adam and Yogi at the server, by hand."""

import numpy as np
import pytest

from server.aggregation.optimizers import Adaptive, Momentum
from shared.adapter import factor_name

B, OTHER = factor_name("v", "B"), factor_name("t", "B")


def ones(value, name=B):
    return {name: np.full((2, 1), value, np.float32)}


def test_momentum_by_hand():
    """Changes 1, 1, 0: steps 1, 1.9, 1.71."""
    state, steps = {}, []
    for value in (1.0, 1.0, 0.0):
        step, state = Momentum(0.9).step(ones(value), state)
        steps.append(float(step[B][0, 0]))
    assert steps == pytest.approx([1.0, 1.9, 1.71])


def test_without_memory_momentum_is_the_plain_change():
    step, _ = Momentum(0.0).step(ones(0.25), {})
    np.testing.assert_array_equal(step[B], ones(0.25)[B])


def test_adam_by_hand():
    """D = 1, tau = 1: m = 0.1, v = 0.99 + 0.01 = 1, so 0.1 / 2; then D = 0: 0.09 / (.995 + 1)."""
    rule = Adaptive("adam", tau=1.0)
    step, state = rule.step(ones(1.0), {})
    assert step[B][0, 0] == pytest.approx(0.05)
    step, state = rule.step(ones(0.0), state)
    assert step[B][0, 0] == pytest.approx(0.09 / (np.sqrt(0.99) + 1))


def test_yogi_by_hand():
    """D = 2, tau = 1: v = 1 + 0.01 * 4; then D = 0.5 < sqrt(v): v shrinks by 0.01 * 0.25."""
    rule = Adaptive("yogi", tau=1.0)
    step, state = rule.step(ones(2.0), {})
    assert step[B][0, 0] == pytest.approx(0.2 / (np.sqrt(1.04) + 1))
    step, state = rule.step(ones(0.5), state)
    assert step[B][0, 0] == pytest.approx((0.18 + 0.05) / (np.sqrt(1.04 - 0.0025) + 1))


def test_yogi_forgets_large_squares_more_slowly_than_adam():
    large, small = ones(1.0), ones(0.01)
    kept = {}
    for kind in ("adam", "yogi"):
        state = {}
        for change in (large, *[small] * 50):
            _, state = Adaptive(kind).step(change, state)
        kept[kind] = min(float(v.min()) for n, v in state.items() if n.endswith(".second"))
    assert kept["yogi"] > 1.4 * kept["adam"]


@pytest.mark.parametrize("rule", [Momentum(), Adaptive("adam"), Adaptive("yogi")])
def test_a_factor_that_nobody_trained_keeps_its_state(rule):
    _, state = rule.step(ones(1.0) | ones(2.0, OTHER), {})
    steps, after = rule.step(ones(1.0), state)
    assert set(steps) == {B}
    for name, values in state.items():
        if name.startswith(OTHER):
            assert after[name] is values
        else:
            assert not np.array_equal(after[name], values)
    assert all(values.dtype == np.float32 for values in after.values())


def test_the_state_it_is_given_is_not_changed():
    _, state = Adaptive("adam").step(ones(1.0), {})
    copies = {name: values.copy() for name, values in state.items()}
    Adaptive("adam").step(ones(3.0), state)
    assert all(np.array_equal(state[name], values) for name, values in copies.items())
