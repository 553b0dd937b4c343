"""The bound of one run: the paper's numbers, and never above the truth."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from simulations.audit.one_run import bound_of, lower_bound, p_value


def paper_p_value(m, r, v, epsilon, delta):
    """The paper's own program (appendix D), term by term."""
    q = 1 / (1 + np.exp(-epsilon))
    beta = binom.sf(v - 1, r, q)
    alpha = total = 0.0
    for i in range(1, v + 1):
        total += binom.pmf(v - i, r, q)
        alpha = max(alpha, total / i)
    return min(beta + alpha * delta * 2 * m, 1)


@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize(("m", "r", "v"), [(100, 100, 100), (1000, 400, 351), (1000, 20, 20)])
def test_the_p_value_is_the_papers(m, r, v, delta):
    for epsilon in (0.0, 0.7, 2.0, 5.0):
        wanted = paper_p_value(m, r, v, epsilon, delta)
        assert p_value(m, r, v, epsilon, delta) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_with_all_guesses_right_the_bound_is_known_in_closed_form():
    # (e / (1 + e)) ** r = 0.05 at e = exp(epsilon)
    root = 0.05 ** (1 / 500)
    wanted = math.log(root / (1 - root))
    assert lower_bound(500, 500, 500, 0.0, 0.95) == pytest.approx(wanted, abs=2e-4)


def test_delta_makes_the_bound_smaller_and_so_does_confidence():
    plain = lower_bound(1000, 400, 380, 0.0, 0.95)
    assert 0 < lower_bound(1000, 400, 380, 1e-4, 0.95) < plain
    assert 0 < lower_bound(1000, 400, 380, 0.0, 0.999) < plain


def test_guesses_by_chance_show_nothing():
    assert lower_bound(1000, 1000, 520, 1e-5) == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_randomized_response_that_attains_the_bound_is_almost_never_accused(epsilon):
    rng = np.random.default_rng(7)
    right = 1 / (1 + math.exp(-epsilon))
    bounds = []
    for _ in range(200):
        included = rng.random(600) < 0.5
        answers = np.where(rng.random(600) < right, included, ~included)
        scores = answers + 1e-6 * rng.random(600)
        bounds.append(bound_of(scores, included, 0.0, 0.95).bound)
    assert np.mean(np.array(bounds) > epsilon) <= 0.05
    assert np.median(bounds) > 0.4 * epsilon  # and it has power


def test_it_guesses_at_those_that_it_is_surest_about():
    included = np.arange(1000) % 2 == 0
    scores = np.where(np.arange(1000) < 120, np.where(included, 5.0, -5.0), 0.0)
    found = bound_of(scores, included, 0.0)
    assert found.guesses == found.right == 100
    assert found.bound <= found.most
    assert found.canaries == 1000


@pytest.mark.parametrize(
    ("scores", "coins"), [([1.0], [True]), ([1.0, 2.0], [True]), ([1.0, np.nan], [True, False])]
)
def test_scores_that_cannot_be_used_are_an_error(scores, coins):
    with pytest.raises(ValueError, match="expected as many of each"):
        bound_of(np.array(scores), np.array(coins), 0.0)
