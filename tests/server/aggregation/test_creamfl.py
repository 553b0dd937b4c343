"""CreamFL at the server, with numbers that can be checked by hand."""

import math

import numpy as np
import pytest

from server.aggregation.creamfl import CreamFl
from shared.adapter import AdapterLayout, AdapterUpdate, LayerShape

LAYOUT = AdapterLayout((LayerShape("v.q", "image", 3, 4),), rank=2, scaling=2.0)
EYE = np.eye(2, dtype=np.float32)
START = {"image": EYE, "text": EYE}


def update(site, **features):
    halves = {tower: np.asarray(values, np.float16) for tower, values in features.items()}
    return AdapterUpdate(site, dict.fromkeys(features, 1), {}, 1.0, {}, halves)


def after(updates, temperature=1.0):
    rule = CreamFl(temperature, START)
    return rule.aggregate(rule.start(LAYOUT, 1), LAYOUT, updates).features


def test_it_begins_with_the_features_that_it_is_given_and_has_no_factors():
    start = CreamFl(first=START).start(LAYOUT, 1)
    assert start.factors == {}
    assert start.features is START


def test_a_site_alone_decides():
    swapped = EYE[::-1]
    features = after([update("a", image=swapped)])
    np.testing.assert_array_equal(features["image"], swapped)
    assert features["text"] is START["text"]  # nobody sent it: not a bit is touched


def test_the_site_that_tells_the_pairs_apart_counts_more():
    # Against texts e0, e1 the right site's item 0 has logits (1, 0), the wrong one's (0, 1): their
    # scores differ by 1, so their weights are as e to 1.
    features = after([update("right", image=EYE), update("wrong", image=EYE[::-1])])
    wanted = np.array([math.e, 1.0]) / math.hypot(math.e, 1.0)
    np.testing.assert_allclose(features["image"], [wanted, wanted[::-1]], atol=1e-3)
    sharp = after([update("right", image=EYE), update("wrong", image=EYE[::-1])], 0.1)
    np.testing.assert_allclose(sharp["image"], EYE, atol=1e-3)


def test_the_order_of_arrival_changes_no_bit():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 2, 2))
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    updates = [update(name, image=v, text=v) for name, v in zip("abc", values, strict=True)]
    one, other = after(updates), after(updates[::-1])
    assert all(one[tower].tobytes() == other[tower].tobytes() for tower in one)
    lengths = np.linalg.norm(one["image"], axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)


def test_sites_that_agree_are_all_kept():
    turned = np.array([[0.6, 0.8], [-0.8, 0.6]])
    features = after([update(name, image=turned) for name in "ab"])
    np.testing.assert_allclose(features["image"], turned, atol=1e-3)


def test_what_is_committed_is_told_by_its_features():
    rule = CreamFl(first=START)
    other = CreamFl(first={**START, "text": EYE[::-1].copy()})
    assert rule.start(LAYOUT, 1).sha256() == rule.start(LAYOUT, 2).sha256()
    assert rule.start(LAYOUT, 1).sha256() != other.start(LAYOUT, 1).sha256()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_each_tower_is_weighed_against_the_other(tower):
    """The received features of the other tower decide, not those of the same."""
    rule = CreamFl(1e-3, {**START, tower: EYE[::-1].copy()})
    updates = [update("right", **{tower: EYE}), update("wrong", **{tower: EYE[::-1]})]
    features = rule.aggregate(rule.start(LAYOUT, 1), LAYOUT, updates).features
    np.testing.assert_allclose(features[tower], EYE, atol=1e-3)
