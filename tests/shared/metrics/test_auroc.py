import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from shared.metrics.auroc import macro, scorable, weighted_auroc


def test_by_hand_with_a_tie():
    # Pairs (positive, negative): 2>1, 2=2, 3>1, 3>2 -> 3.5 of 4
    scores, positive = np.array([2.0, 3.0, 1.0, 2.0]), np.array([True, True, False, False])
    assert weighted_auroc(scores, positive, np.ones((1, 4)))[0] == 3.5 / 4


def test_a_constant_score_is_chance():
    values = weighted_auroc(np.zeros(6), np.array([1, 0, 1, 0, 0, 0], bool), np.ones((1, 6)))
    assert values[0] == 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40))
def test_agrees_with_scikit_learn_under_weights(seed, count):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, count) / 3
    positive = np.arange(count) % 3 == 0
    weights = generator.integers(0, 4, (5, count)).astype(float) + 0.5
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auroc(scores, positive, weights), expected, atol=1e-12)


def test_a_resample_without_positives_has_no_value():
    weights = np.array([[1.0, 1.0], [0.0, 2.0]])
    values = weighted_auroc(np.array([1.0, 0.0]), np.array([True, False]), weights)
    assert values[0] == 1.0
    assert np.isnan(values[1])


def test_small_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    scores, positive = generator.random(30), generator.random(30) < 0.4
    weights = generator.integers(0, 3, (50, 30)).astype(float)
    whole = weighted_auroc(scores, positive, weights)
    monkeypatch.setattr("shared.metrics.auroc._BLOCK", 100)
    np.testing.assert_array_equal(weighted_auroc(scores, positive, weights), whole)


def test_a_finding_needs_three_of_both_kinds():
    labels = np.zeros((8, 4), bool)
    labels[:2, 0], labels[:3, 1], labels[:5, 2], labels[:6, 3] = True, True, True, True
    assert scorable(labels).tolist() == [1, 2]


def test_macro_is_the_mean_of_what_exists():
    values = np.array([[0.6, np.nan, np.nan], [0.8, 0.4, np.nan]])
    np.testing.assert_allclose(macro(values), [0.7, 0.4, np.nan])


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_only_the_order_of_scores_matters(shift):
    scores, positive = np.array([0.1, 0.4, 0.2]), np.array([False, True, True])
    assert weighted_auroc(np.exp(scores) + shift, positive, np.ones((1, 3)))[0] == 1.0
