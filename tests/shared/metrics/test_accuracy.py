import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics.accuracy import balanced_accuracy, choose_threshold


def test_separable_scores_get_the_gap_between_them():
    scores, positive = np.array([1.0, 2.0, 5.0, 7.0]), np.array([False, False, True, True])
    assert choose_threshold(scores, positive) == 3.5


def test_balanced_accuracy_by_hand():
    # At 3.5: 1 of 2 positives called, 3 of 4 negatives not called: (1/2 + 3/4) / 2
    scores = np.array([5.0, 2.0, 1.0, 1.0, 2.0, 9.0])
    positive = np.array([True, True, False, False, False, False])
    weights = np.array([[1.0] * 6, [1, 0, 1, 1, 1, 0]])
    assert balanced_accuracy(scores, positive, 3.5, weights).tolist() == [0.625, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_no_other_threshold_is_better_on_validation(seed, count):
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(0, 8, count) / 4, generator.random(count) < 0.5
    positive[:2] = True, False
    ones = np.ones((1, count))
    best = balanced_accuracy(scores, positive, choose_threshold(scores, positive), ones)[0]
    middles = (np.unique(scores)[1:] + np.unique(scores)[:-1]) / 2
    others = [balanced_accuracy(scores, positive, t, ones)[0] for t in middles]
    assert best >= max(others, default=0.5) - 1e-12


def test_one_kind_only_is_refused():
    with pytest.raises(ValueError, match="positives and negatives"):
        choose_threshold(np.array([1.0, 2.0]), np.array([True, True]))


def test_constant_scores_still_give_a_threshold():
    threshold = choose_threshold(np.ones(4), np.array([1, 0, 1, 0], bool))
    values = balanced_accuracy(np.ones(4), np.array([1, 0, 1, 0], bool), threshold, np.ones((1, 4)))
    assert values[0] == 0.5
