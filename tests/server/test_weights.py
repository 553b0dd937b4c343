import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cohort import choose_cohort, least_replies
from server.weights import integer_weights, round_weights
from shared.config import AggregateConfig
from shared.fixedpoint import LARGEST


@pytest.mark.parametrize(
    ("weighting", "wanted"),
    [("equal", [1, 1, 1]), ("size", [64, 128, 255]), ("sqrt", [128, 180, 255])],
)
def test_weights_follow_the_counts(weighting, wanted):
    counts = {"a": 100, "b": 200, "c": 400}
    weights = integer_weights(counts, weighting, 1.0)
    assert [weights[site] for site in "abc"] == wanted


def test_a_site_without_records_has_no_weight():
    assert integer_weights({"a": 0, "b": 9}, "sqrt", 0.5) == {"b": 1}
    assert integer_weights({"a": 0}, "sqrt", 0.5) == {}


def test_a_large_site_is_capped():
    weights = integer_weights({"big": 10_000, "b": 100, "c": 100}, "size", 0.5)
    assert weights["big"] <= weights["b"] + weights["c"]
    assert weights["big"] > weights["b"] == weights["c"]


def test_equal_weights_where_the_cap_cannot_be_met():
    assert integer_weights({"big": 10_000, "b": 1}, "size", 0.25) == {"big": 1, "b": 1}


@given(
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**7), max_size=12),
    st.sampled_from(["sqrt", "size", "equal"]),
    st.floats(0.01, 1.0),
)
def test_weights_are_small_positive_and_within_the_cap(counts, weighting, share):
    weights = integer_weights(counts, weighting, share)
    assert set(weights) == {site for site, count in counts.items() if count > 0}
    assert all(1 <= weight <= 255 for weight in weights.values())
    if weights:
        limit = max(share, 1 / len(weights))
        assert max(weights.values()) <= limit * sum(weights.values()) + 1e-6
        ordered = sorted(weights, key=lambda site: counts[site])
        assert all(weights[a] <= weights[b] for a, b in itertools.pairwise(ordered))


def test_towers_are_weighted_each_for_itself():
    examples = {"a": {"image": 100, "text": 0}, "b": {"image": 100, "text": 50}}
    plan = round_weights(examples, AggregateConfig())
    assert plan.of_site == {"a": {"image": 1}, "b": {"image": 1, "text": 1}}
    assert 2 * 16.0 * plan.scale <= LARGEST - 2


def test_the_cohort_depends_on_seed_round_and_names_only():
    sites = ["e", "a", "c", "b", "d"]
    one = choose_cohort(sites, 2, 7, 3)
    assert one == choose_cohort(sorted(sites), 2, 7, 3)
    assert len(one) == 2
    assert {tuple(choose_cohort(sites, 2, 7, n)) for n in range(20)} != {tuple(one)}
    assert choose_cohort(sites, None, 7, 3) == choose_cohort(sites, 9, 7, 3) == sorted(sites)


@pytest.mark.parametrize(
    ("quorum", "cohort", "meant", "least"),
    [(None, None, 5, 3), (None, None, 4, 2), (None, 2, 9, 1), (3, None, 9, 3), (None, None, 0, 1)],
)
def test_a_round_needs_the_quorum_or_half_of_the_cohort(quorum, cohort, meant, least):
    assert least_replies(AggregateConfig(quorum=quorum, cohort=cohort), meant) == least
