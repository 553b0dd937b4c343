"""Epsilon: that of dp-accounting, never below, and what follows from more or less of anything."""

import itertools
import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from shared.privacy.accountant import (
    Spend,
    accountant_version,
    epsilon,
    noise_for,
    site_level_price,
)

GRID = list(itertools.product((0.01, 0.05, 0.15), (0.8, 1.0, 2.0, 4.0, 8.0), (1, 20, 100, 400)))


def reference(*spends, delta=1e-5):
    accountant = PLDAccountant()
    for spend in spends:
        step = dp_accounting.PoissonSampledDpEvent(
            spend.sampling, dp_accounting.GaussianDpEvent(spend.noise)
        )
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, spend.steps))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("part", [GRID[::12], pytest.param(GRID, marks=pytest.mark.slow)])
def test_sixty_points_agree_with_dp_accounting_and_none_is_below(part):
    assert len(GRID) == 60
    for sampling, noise, steps in part:
        spend = Spend(sampling=sampling, noise=noise, steps=steps, entries=250_000)
        ours, theirs = epsilon([spend], 1e-5), reference(spend)
        assert theirs <= ours, spend
        assert ours <= theirs * 1.01 + 1e-4, spend


@pytest.mark.parametrize(
    ("noise", "rounds", "expected"),
    [(1, 1, 4.38), (4, 50, 8.6), (8, 100, 5.7)],
)
def test_gaussians_without_sampling_have_the_known_price(noise, rounds, expected):
    assert epsilon([Spend(sampling=1, noise=noise, steps=rounds)], 1e-5) == pytest.approx(
        expected, abs=0.06
    )


def test_mechanisms_runs_and_studies_compose():
    parts = [
        Spend(sampling=0.1, noise=3, steps=60),
        Spend(sampling=0.02, noise=2.0, steps=100),
        Spend(sampling=1, noise=6, steps=3),
    ]
    together = epsilon(parts, 1e-5)
    assert reference(*parts) <= together <= reference(*parts) * 1.01
    assert together > max(epsilon([part], 1e-5) for part in parts)
    assert together < sum(epsilon([part], 1e-5) for part in parts)
    assert epsilon(reversed(parts), 1e-5) == together
    halves = [parts[0].model_copy(update={"steps": 30})] * 2
    assert epsilon(halves, 1e-5) == epsilon(parts[:1], 1e-5)


def test_grows_with_steps_and_rate_and_falls_with_noise():
    def of(**more):
        return epsilon([Spend(**{"sampling": 0.05, "noise": 3.0, "steps": 50, **more})], 1e-6)

    for key, values in (("steps", (1, 10, 50, 51)), ("sampling", (0.01, 0.05, 0.06, 1.0))):
        found = [of(**{key: value}) for value in values]
        assert found == sorted(found)
        assert len(set(found)) == len(found)
    assert of(noise=6) < of(noise=3.01) < of(noise=3)


def test_imprecise_noise_is_paid_for():
    few, many = (Spend(sampling=1, noise=4, steps=100, entries=n) for n in (1, 10**9))
    assert epsilon([many], 1e-5) - epsilon([few], 1e-5) > 2 * 100 * 10**9 * 2.0**-44


def test_nothing_costs_nothing_and_next_to_no_noise_costs_everything():
    assert epsilon([], 1e-5) == 0
    assert epsilon([Spend(sampling=0.1, noise=1, steps=0)], 1e-5) == 0
    assert epsilon([Spend(sampling=0.1, noise=0.05, steps=1)], 1e-5) == math.inf
    assert epsilon([Spend(sampling=1, noise=0.1, steps=10**7)], 1e-5) == math.inf


@pytest.mark.parametrize("delta", [0, 1, -1e-5])
def test_delta_is_a_probability(delta):
    with pytest.raises(ValueError, match="delta"):
        epsilon([Spend(sampling=0.1, noise=1, steps=1)], delta)


@pytest.mark.parametrize(
    ("sampling", "steps", "budget", "delta", "known"),
    [(0.15, 150, 2, 1e-4, 3.35), (0.15, 150, 8, 1e-4, 1.24), (1.0, 20, 8, 1e-5, 2.68)],
)
def test_calibrated_noise_keeps_to_the_budget_and_is_no_larger_than_needed(
    sampling, steps, budget, delta, known
):
    plan = Spend(sampling=sampling, noise=1, steps=steps, entries=100_000)
    noise = noise_for(budget, delta, plan)
    assert noise == pytest.approx(known, abs=0.01)
    assert epsilon([plan.model_copy(update={"noise": noise})], delta) <= budget
    less = plan.model_copy(update={"noise": noise / 1.005})
    assert epsilon([less], delta) > budget


def test_calibration_counts_what_was_spent_before():
    before = [Spend(sampling=0.1, noise=3, steps=60)]
    plan = Spend(sampling=0.1, noise=1, steps=60)
    fresh, later = noise_for(2, 1e-5, plan), noise_for(2, 1e-5, plan, before)
    assert later > fresh
    assert epsilon([*before, plan.model_copy(update={"noise": later})], 1e-5) <= 2
    with pytest.raises(ValueError, match="spent"):
        noise_for(0.5, 1e-5, plan, before)


def test_hiding_a_whole_site_among_few_has_its_honest_price():
    price = site_level_price(sites=10, noise=8, rounds=50, delta=1e-5, entries=250_000)
    assert price.epsilon == pytest.approx(3.8, abs=0.05)
    assert price.deviation == 0.8
    assert price.noise_to_signal == 400


def test_the_statement_can_name_the_accountant():
    assert accountant_version().endswith("(dp-accounting) 0.6.0")
