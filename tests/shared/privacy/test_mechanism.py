"""A step: who takes part, how much each may change, and the noise that covers it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import TrainingError
from shared.fixedpoint import LARGEST
from shared.privacy.clipping import l2_norm
from shared.privacy.mechanism import (
    clipped_sum,
    distributed_grid,
    grid_of_scale,
    local_grid,
    noised,
    noised_steps,
    poisson_sample,
)
from shared.privacy.noise import LEAST_BITS, seeded

any_float = st.floats(width=32, allow_nan=True, allow_infinity=True)
change = st.lists(any_float, min_size=3, max_size=3).map(
    lambda v: {"a": np.array(v[:2], np.float32), "b": np.array([[v[2]]], np.float32)}
)


def test_every_patient_has_its_own_coin():
    draw = seeded(1)
    batches = [poisson_sample(200, 0.05, draw) for _ in range(2000)]
    sizes = np.array([len(batch) for batch in batches])
    # Sizes are binomial; batches of a fixed or shuffled size would have no such variance.
    assert sizes.mean() == pytest.approx(10, abs=0.35)
    assert sizes.var() == pytest.approx(200 * 0.05 * 0.95, rel=0.15)
    shares = np.bincount(np.concatenate(batches), minlength=200) / 2000
    assert shares.min() > 0.025
    assert shares.max() < 0.08
    both = np.mean([{0, 1} <= set(batch.tolist()) for batch in batches])
    assert both < 0.01


def test_nobody_may_take_part_and_everybody_may():
    assert any(len(poisson_sample(3, 0.01)) == 0 for _ in range(20))
    assert poisson_sample(5, 1).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5).tolist() == []
    assert (
        poisson_sample(2, 0.5, lambda count: (2**63).to_bytes(8, "little") * (count // 8)).size == 0
    )


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_the_rate_is_a_probability(rate):
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_sample(10, rate)


@settings(deadline=None, max_examples=300)
@given(st.lists(change, max_size=6), change, st.floats(1e-3, 1e3))
def test_one_patient_more_changes_the_sum_by_no_more_than_the_norm(others, one, norm):
    without, _ = clipped_sum(others, norm)
    with_one, _ = clipped_sum([*others, one], norm)
    zero = {"a": np.zeros(2), "b": np.zeros((1, 1))}
    difference = {
        name: with_one.get(name, zero[name]) - without.get(name, zero[name]) for name in zero
    }
    assert l2_norm(difference) <= norm * (1 + 1e-6)


def test_a_patient_with_numbers_that_are_not_finite_is_left_out_and_counted():
    good = {"a": np.array([3, 4], np.float32)}
    bad = {"a": np.array([np.nan, 1], np.float32)}
    total, left_out = clipped_sum([good, bad, {"a": np.array([np.inf, 0], np.float32)}], 10)
    assert total["a"].tolist() == [3, 4]
    assert left_out == 2


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_released_noise_is_within_two_percent_of_nominal(multiplier):
    grid = local_grid(100_000, 0.7, multiplier)
    total = np.linspace(-3, 3, 100_000)
    drawn = noised(total, grid) - total
    assert drawn.std() == pytest.approx(multiplier * 0.7, rel=0.02)
    assert abs(drawn.mean()) < 0.02 * multiplier


def test_the_noise_covers_what_rounding_adds():
    for entries in (1, 10_000, 4_400_000):
        grid = local_grid(entries, 1.0, 1.0)
        assert grid.per_unit + np.sqrt(entries) <= 2**24
        assert 2**24 / grid.per_unit < 1.001


def test_noise_differs_between_sites_and_steps():
    grid = local_grid(1000, 1.0, 1.0)
    first, second = (noised(np.zeros(1000), grid) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert (first != second).all()


def test_shares_that_remain_are_as_much_noise_as_was_asked_for():
    grid = distributed_grid(50_000, 1.0, 1.5, parties=6, missing=2)
    present = sum(noised_steps(np.zeros(50_000), grid) for _ in range(4))
    assert (present / grid.per_unit).std() == pytest.approx(1.5, rel=0.02)


@settings(deadline=None)
@given(
    scale=st.floats(1.0, 1e8),
    noise=st.floats(0.3, 20.0),
    entries=st.integers(1, 4_400_000),
    shares=st.integers(2, 40),
)
def test_whatever_the_scale_the_shares_are_enough_or_nothing_is_sent(scale, noise, entries, shares):
    """A coordinator that says a finer scale gets more noise, never less."""
    try:
        grid = grid_of_scale(scale, entries, 1.0, noise, parties=shares + 1, shares=shares)
    except ValueError:
        return
    together = 2.0**grid.bits * np.sqrt(shares)
    assert together >= noise * (scale + 2 * np.sqrt(entries)) * (1 - 1e-12)
    assert grid.limit >= 4 * scale
    everything = (shares + 1) * (grid.limit + 1) + 15 * 2**grid.bits * np.sqrt(shares + 1)
    assert everything <= LARGEST + shares + 2


def test_at_the_scale_of_the_grid_the_noise_is_no_more_than_it_was_made_for():
    made = distributed_grid(50_000, 2.0, 1.3, parties=5, missing=3)
    found = grid_of_scale(made.per_unit * 0.999, 50_000, 2.0, 1.3, parties=5, shares=2)
    assert (found.bits, found.limit) == (made.bits, made.limit)
    finer = grid_of_scale(made.per_unit * 0.499, 50_000, 2.0, 1.3, parties=5, shares=2)
    assert finer.bits == made.bits - 1


@pytest.mark.parametrize(("parties", "missing"), [(3, 1), (10, 4), (50, 17)])
def test_a_masked_sum_never_wraps(parties, missing):
    grid = distributed_grid(500_000, 1.0, 1.0, parties=parties, missing=missing)
    assert grid.bits >= LEAST_BITS
    far = np.full(10, 1e12)
    steps = noised_steps(far, grid, seeded(1))
    assert parties * (grid.limit + 1) + 15 * 2**grid.bits * np.sqrt(parties) <= LARGEST + 1
    assert (steps <= grid.limit + 15 * 2**grid.bits).all()
    # What is cut off is far above what a clipped patient adds.
    assert grid.limit >= 4 * grid.per_unit


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"parties": 3, "missing": 3}, "leave no noise"),
        ({"parties": 3, "missing": -1}, "leave no noise"),
        ({"parties": 5000, "missing": 1}, "does not fit"),
    ],
)
def test_refuses_noise_that_cannot_be_distributed(arguments, why):
    with pytest.raises(ValueError, match=why):
        distributed_grid(1000, 1.0, 1.0, **arguments)


@pytest.mark.parametrize(("sensitivity", "multiplier"), [(0, 1), (1, 0), (np.inf, 1), (1, np.nan)])
def test_refuses_clipping_without_noise_and_noise_without_clipping(sensitivity, multiplier):
    with pytest.raises(ValueError, match="no privacy"):
        local_grid(10, sensitivity, multiplier)


def test_refuses_a_sum_that_is_not_finite():
    with pytest.raises(TrainingError) as caught:
        noised_steps(np.array([np.nan]), local_grid(1, 1, 1))
    assert caught.value.reason == "change-not-finite"
