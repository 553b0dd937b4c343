import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics import METRICS as INFO
from shared.metrics import chance_level
from shared.metrics.retrieval import display_order, recall, retrieve, text_gallery
from shared.results import METRICS


def score(scores, own, k=1):
    """Recall both ways from a score matrix: identity texts make similarity the matrix itself."""
    matrix = np.asarray(scores, dtype=np.float64)
    hits = retrieve(matrix, np.eye(matrix.shape[1]), np.asarray(own), (k,))
    ones = np.ones((1, len(hits.queries)))
    return tuple(
        float(recall(side[k], hits.weights, ones)[0])
        for side in (hits.image_to_text, hits.text_to_image)
    )


def brute_force(scores, own, k):
    """Mean over every order of every group of ties, spelled out."""
    scores, own = np.asarray(scores, dtype=float), np.asarray(own)

    def chance(values, right):
        orders = list(itertools.permutations(range(len(values))))
        consistent = [
            order
            for order in orders
            if all(values[a] >= values[b] for a, b in itertools.pairwise(order))
        ]
        return np.mean([any(right[i] for i in order[:k]) for order in consistent])

    texts = [t for t in range(scores.shape[1]) if (own == t).any()]
    to_text = {t: [] for t in texts}
    for row, text in enumerate(own):
        if text >= 0:
            right = np.arange(scores.shape[1]) == text
            to_text[text].append(chance(scores[row], right))
    to_image = [chance(scores[:, text], own == text) for text in texts]
    return np.mean([np.mean(values) for values in to_text.values()]), np.mean(to_image)


def test_one_of_two_images_finds_its_text():
    # Image 0 prefers text 0 (its own), image 1 prefers text 0 too (its own is 1).
    assert score([[0.9, 0.1], [0.8, 0.2]], [0, 1]) == (0.5, 1.0)


def test_an_identical_text_of_another_record_counts_as_a_hit():
    # Images 0 and 1 share text 0; the query text 0 finds image 1 first, which is right.
    to_text, to_image = score([[0.5, 0.1], [0.9, 0.1], [0.2, 0.6]], [0, 0, 1])
    assert (to_text, to_image) == (1.0, 1.0)


def test_every_distinct_text_weighs_the_same():
    # Nine images of text 0 are all right, the only image of text 1 is wrong: 1/2, not 9/10.
    scores = [[0.9, 0.1]] * 9 + [[0.8, 0.2]]
    assert score(scores, [0] * 9 + [1])[0] == pytest.approx(0.5)


def test_a_constant_encoder_scores_chance_not_luck():
    to_text, to_image = score(np.zeros((6, 4)), [0, 0, 0, 1, 2, 3], k=1)
    assert to_text == pytest.approx(1 / 4)
    # 3 of 6 images fit text 0, one fits each other text: (3/6 + 3 * 1/6) / 4
    assert to_image == pytest.approx(1 / 4)


def test_texts_without_an_image_fill_the_gallery_but_ask_nothing():
    # The right text 0 is beaten by text 1, which no image has.
    assert score([[0.4, 0.6]], [0], k=1) == (0.0, 1.0)


def test_images_without_a_text_fill_the_gallery_but_ask_nothing():
    assert score([[0.4], [0.9]], [0, -1], k=1) == (1.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_agrees_with_every_order_written_out(data):
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    cells = st.lists(st.integers(0, 2), min_size=columns, max_size=columns)
    scores = data.draw(st.lists(cells, min_size=rows, max_size=rows))
    own = data.draw(st.lists(st.integers(-1, columns - 1), min_size=rows, max_size=rows))
    k = data.draw(st.integers(1, 3))
    if max(own) < 0:
        return
    assert score(scores, own, k) == pytest.approx(brute_force(scores, own, k))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_records_does_not_matter(seed):
    generator = np.random.default_rng(seed)
    scores, own = generator.integers(0, 4, (12, 5)) / 4, generator.integers(-1, 5, 12)
    own[0] = 0
    order = generator.permutation(12)
    assert score(scores, own, 2) == pytest.approx(score(scores[order], own[order], 2))


def test_small_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    scores, own = generator.random((40, 9)), generator.integers(-1, 9, 40)
    whole = score(scores, own, 3)
    monkeypatch.setattr("shared.metrics.retrieval._BLOCK", 20)
    assert score(scores, own, 3) == pytest.approx(whole)


def test_a_resample_reweighs_records():
    hits = retrieve(np.array([[0.9, 0.1], [0.8, 0.2]]), np.eye(2), np.array([0, 1]), (1,))
    weights = np.array([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    values = recall(hits.image_to_text[1], hits.weights, weights)
    np.testing.assert_allclose(values, [0.5, 0.75, 0.0, np.nan])


def test_refuses_a_split_without_pairs():
    with pytest.raises(ValueError, match="at least one image with a text"):
        retrieve(np.ones((2, 1)), np.ones((1, 1)), np.array([-1, -1]))


def test_text_behind_a_mask_is_not_in_the_gallery():
    gallery = text_gallery(
        ["a", "hidden", "b", "a"],
        np.array([True, False, True, True]),
        np.array([True, True, False, True]),
    )
    assert gallery.texts == ("a", "b")
    assert gallery.own.tolist() == [0, -1, 0]


def test_display_order_breaks_ties_by_seed_only():
    scores = np.array([0.5, 0.9, 0.5, 0.5])
    assert display_order(scores, 1)[0] == 1
    assert display_order(scores, 1).tolist() == display_order(scores, 1).tolist()
    assert {tuple(display_order(scores, seed)) for seed in range(20)} != {(1, 0, 2, 3)}


def test_every_metric_of_the_schema_is_described():
    assert tuple(INFO) == METRICS
    assert [m for m in METRICS if INFO[m].direction == "lower"] == ["ece"]


def test_chance_follows_the_galleries():
    assert chance_level("auroc", 10, 20) == 0.5
    assert chance_level("ece", 10, 20) is None
    assert chance_level("i2t_r5", 10, 20) == 0.5
    assert chance_level("t2i_r5", 10, 20) == 0.25
    assert chance_level("r5", 10, 20) == 0.375
    assert chance_level("r5", 0, 0) is None
