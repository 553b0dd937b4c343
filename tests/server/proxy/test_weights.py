"""Contrast weights with numbers that can be checked by hand: two sites, two items."""

import math

import numpy as np
import pytest

from server.proxy.weights import contrast_weights, ensemble

TEXTS = np.eye(2)
GOOD = np.eye(2)  # each item beside its own partner
BLIND = np.full((2, 2), math.sqrt(0.5))  # as near to one partner as to the other


def test_two_sites_and_two_items_by_hand() -> None:
    # The good site's score is log(e / (e + 1)), the blind one's log(1 / 2), so that their weights
    # are as e / (e + 1) to 1 / 2: 2 e / (3 e + 1) = 0.5938 and 0.4062.
    weights = contrast_weights(np.stack([GOOD, BLIND]), np.array([True, True]), TEXTS)
    right = 2 * math.e / (3 * math.e + 1)
    assert weights == pytest.approx(np.array([[right, right], [1 - right, 1 - right]]))
    assert right == pytest.approx(0.5938, abs=1e-4)


def test_every_item_has_its_own_weights() -> None:
    # The first site knows item 0 only, the second item 1 only.
    first, second = np.stack([TEXTS[0], BLIND[1]]), np.stack([BLIND[0], TEXTS[1]])
    weights = contrast_weights(np.stack([first, second]), np.array([True, True]), TEXTS)
    right = 2 * math.e / (3 * math.e + 1)
    assert weights == pytest.approx(np.array([[right, 1 - right], [1 - right, right]]))


def test_temperatures_sharpen_and_flatten() -> None:
    # Scores at temperature 1/2: log(e^2 / (e^2 + 1)) and log(1/2); halved by weight_temperature 2.
    weights = contrast_weights(np.stack([GOOD, BLIND]), np.array([True, True]), TEXTS, 0.5, 2.0)
    good, blind = math.sqrt(math.e**2 / (math.e**2 + 1)), math.sqrt(0.5)
    assert weights[0] == pytest.approx(good / (good + blind))
    flat = contrast_weights(np.stack([GOOD, BLIND]), np.array([True, True]), TEXTS, 1.0, 1e9)
    assert flat == pytest.approx(np.full((2, 2), 0.5))


def test_sites_without_the_tower_count_nothing_whatever_their_rows_hold() -> None:
    rubbish = np.full((2, 2), np.nan)
    owners = np.array([True, False, True])
    weights = contrast_weights(np.stack([GOOD, rubbish, BLIND]), owners, TEXTS)
    alone = contrast_weights(np.stack([GOOD, BLIND]), np.array([True, True]), TEXTS)
    assert np.array_equal(weights[owners], alone)
    assert np.array_equal(weights[1], [0.0, 0.0])
    mixed = ensemble(np.stack([GOOD, rubbish, BLIND]), weights)
    assert np.array_equal(mixed, ensemble(np.stack([GOOD, BLIND]), alone))


def test_nobody_owns_the_tower() -> None:
    weights = contrast_weights(np.stack([GOOD]), np.array([False]), TEXTS)
    assert np.array_equal(weights, np.zeros((1, 2)))


def test_small_temperatures_do_not_overflow() -> None:
    weights = contrast_weights(np.stack([GOOD, BLIND]), np.array([True, True]), TEXTS, 1e-3)
    # The good site is sure: log 1 = 0; the blind one is not: log(1/2). Weights as 1 to 1/2.
    assert weights == pytest.approx(np.array([[2 / 3, 2 / 3], [1 / 3, 1 / 3]]))


def test_the_ensemble_has_length_one() -> None:
    # (0.75, 0) + (0, 0.25) = (0.75, 0.25), of length sqrt(0.625).
    sites = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    mixed = ensemble(sites, np.array([[0.75], [0.25]]))
    assert mixed == pytest.approx(np.array([[0.75, 0.25]]) / math.sqrt(0.625))


def test_the_order_of_sites_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    sites = generator.normal(size=(3, 5, 4))
    sites /= np.linalg.norm(sites, axis=2, keepdims=True)
    others = sites[0]
    owners = np.array([True, True, True])
    weights = contrast_weights(sites, owners, others, 0.1)
    turned = contrast_weights(sites[::-1], owners, others, 0.1)
    assert turned[::-1] == pytest.approx(weights, abs=1e-15)
    assert weights.sum(axis=0) == pytest.approx(np.ones(5))
