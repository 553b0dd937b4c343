"""Membership scores: the AUC is the probability it should be, and its interval holds."""

import numpy as np
import pytest
from scipy.stats import norm

from simulations.audit.membership import Sides, membership, pair_losses, scores, standing


def unit(rng, count, width=24):
    rows = rng.standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_auc_counts_pairs_and_halves_ties():
    members, others = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    by_hand = np.mean([[float(a > b) + 0.5 * (a == b) for b in others] for a in members])
    assert membership(members, others).auc == pytest.approx(by_hand)


def test_the_interval_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth = norm.cdf(0.8 / np.sqrt(2))
    inside = 0
    for _ in range(400):
        found = membership(rng.normal(0.8, 1, 80), rng.normal(0, 1, 120))
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_hits_are_counted_where_one_in_a_hundred_others_is_called_a_member():
    others = np.arange(200.0)
    members = np.array([*np.full(30, 197.5), *np.full(70, 10.0)])  # above 198 of 200
    found = membership(members, others)
    assert found.hits == pytest.approx(0.3)
    assert found.hits_low < 0.3 < found.hits_high
    assert membership(members - 1, others).hits == 0.0


def test_few_scores_are_an_error():
    with pytest.raises(ValueError, match="two or more"):
        membership(np.zeros(1), np.zeros(9))


def test_a_pair_that_was_learned_stands_out_in_both_scores():
    rng = np.random.default_rng(2)
    pairs, references = Sides(unit(rng, 40), unit(rng, 40)), Sides(unit(rng, 60), unit(rng, 60))
    learned = Sides(pairs.image.copy(), pairs.text.copy())
    learned.text[:20] = learned.image[:20]
    found = scores((pairs, references), (learned, references), 10.0)
    for values in found.values():
        assert membership(values[:20], values[20:]).auc == 1.0
        assert np.allclose(values[20:], 0)


def test_losses_are_those_of_the_contrast_with_the_references():
    rng = np.random.default_rng(3)
    pairs, references = Sides(unit(rng, 3), unit(rng, 3)), Sides(unit(rng, 5), unit(rng, 5))
    own = 7.0 * (pairs.image[1] @ pairs.text[1])
    wanted = 0.0
    for mine, theirs in ((pairs.image[1], references.text), (pairs.text[1], references.image)):
        wanted += 0.5 * (np.log(np.exp([own, *(7.0 * theirs @ mine)]).sum()) - own)
    assert pair_losses(pairs, references, 7.0)[1] == pytest.approx(wanted)


def test_a_picture_that_is_like_everything_says_little():
    rng = np.random.default_rng(4)
    references = Sides(unit(rng, 200), unit(rng, 200))
    middle = references.text.mean(0) / np.linalg.norm(references.text.mean(0))
    text = references.text[0]
    like_all = Sides(middle[None], text[None])
    apart = Sides((text + 0.1 * references.image[0])[None], text[None])
    assert standing(apart, references)[0] > 3 * standing(like_all, references)[0]
