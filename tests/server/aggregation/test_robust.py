"""Rules against hostile or broken sites: the bound of each, with 2 hostile sites of 10."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation import AGGREGATORS, COMBINERS
from server.aggregation.clipped_mean import clipped_mean
from server.aggregation.geometric_median import geometric_median, weiszfeld
from server.aggregation.linear import mean_change
from server.aggregation.median import coordinate_median
from server.aggregation.multi_krum import MultiKrum, choose
from server.aggregation.trimmed_mean import TrimmedMean
from shared.adapter import AdapterLayout, LayerShape, factor_name
from shared.config import AggregateConfig
from shared.errors import QuorumError
from tests.server.aggregation.sites_in_memory import LAYOUT, after_rounds, both, updates_of

ROBUST = {
    "trimmed-mean": TrimmedMean(2),
    "median": coordinate_median,
    "geometric-median": geometric_median,
    "multi-krum": MultiKrum(2),
    "clipped-mean": clipped_mean,
}
each_rule = pytest.mark.parametrize("combine", ROBUST.values(), ids=ROBUST)
LINE = AdapterLayout((LayerShape("v", "image", 1, 1),), rank=1, scaling=1.0)
B = factor_name("v", "B")
NAMES = LAYOUT.names(["B"])


def on_a_line(*numbers, weights=None):
    changes = [{B: np.full((1, 1), number, np.float32)} for number in numbers]
    shares = [{"image": weight} for weight in weights or [1] * len(numbers)]
    return updates_of(changes, shares, LINE)


def combined_line(combine, *numbers, weights=None):
    return float(combine(LINE, on_a_line(*numbers, weights=weights))[B][0, 0])


def test_by_hand():
    """Four honest sites near 1 and one at 10; the mean would be 2.8."""
    numbers = (0.9, 1.0, 1.0, 1.1, 10.0)
    assert combined_line(mean_change, *numbers) == pytest.approx(2.8, abs=1e-6)
    assert combined_line(TrimmedMean(1), *numbers) == pytest.approx(3.1 / 3, abs=1e-6)
    assert combined_line(coordinate_median, *numbers) == pytest.approx(1.0, abs=1e-6)
    assert combined_line(geometric_median, *numbers) == pytest.approx(1.0, abs=1e-5)
    # n - f - 2 = 2 are chosen by their distances to 2 neighbours: the two at 1.0.
    assert combined_line(MultiKrum(1), *numbers) == pytest.approx(1.0, abs=1e-6)
    # The median norm is 1: 1.1 and 10 are cut to it.
    assert combined_line(clipped_mean, *numbers) == pytest.approx(4.9 / 5, abs=1e-6)


def test_the_geometric_median_weighs_sites():
    """On a line it is the weighted median: more than half of the weight decides."""
    assert combined_line(geometric_median, 0, 1, 5, weights=[1, 1, 1]) == pytest.approx(1, abs=1e-4)
    assert combined_line(geometric_median, 0, 1, 5, weights=[1, 1, 3]) == pytest.approx(5, abs=1e-4)


def test_the_geometric_median_of_a_square_is_its_centre():
    corners = np.array([[0, 0], [0, 2], [2, 0], [2, 2.0]])
    distances = np.square(corners[:, None] - corners).sum(axis=2)
    coefficients = weiszfeld(distances, np.array([0.1, 0.2, 0.2, 0.1]) / 0.6)
    np.testing.assert_allclose(coefficients @ corners, [1.0, 1.0], atol=1e-6)


def test_multi_krum_chooses_by_neighbours():
    """Of six points with one hostile, three are chosen; 0, 1, 2 have the nearest neighbours."""
    points = np.array([0.0, 1.0, 2.0, 6.0, 7.5, 90.0])
    squares = np.square(points[:, None] - points)
    # Scores over three neighbours: 0: 41, 1: 27, 2: 21, 6: 43.25, 7.5: 74.75, 90: huge.
    np.testing.assert_array_equal(choose(squares, 1), [1, 1, 1, 0, 0, 0])


HONEST, HOSTILE = 8, 2
ATTACKS = {
    "scaled by a hundred": lambda own: 100 * own,
    "signs flipped": lambda own: -own,
    "flipped and scaled": lambda own: -100 * own,
    "as large as the gate lets through": lambda own: np.full_like(own, 1.5),
    "nothing": lambda own: 0 * own,
}


def federation(attack, seed=0):
    """Honest changes around a common one, as (k, d) of each factor, and all updates."""
    generator = np.random.default_rng(seed)
    common = {name: 0.1 * generator.standard_normal(LAYOUT.shape_of(name)) for name in NAMES}
    honest = [
        {
            name: (array + 0.02 * generator.standard_normal(array.shape)).astype(np.float32)
            for name, array in common.items()
        }
        for _ in range(HONEST)
    ]
    hostile = {name: attack(array).astype(np.float32) for name, array in common.items()}
    updates = updates_of([hostile, *honest, hostile], [both(1)] * 10)
    return honest, updates


def flat(change, tower):
    names = [name for name in NAMES if LAYOUT.tower_of(name) == tower]
    return np.concatenate([change[name].astype(np.float64).ravel() for name in names])


@each_rule
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_two_of_ten_hostile_sites_move_the_result_no_further_than_the_bound(combine, attack):
    honest, updates = federation(attack)
    found = combine(LAYOUT, updates)
    for tower in ("image", "text"):
        all_of = np.stack([flat(change, tower) for change in honest])
        centre, result = all_of.mean(axis=0), flat(found, tower)
        radius = np.linalg.norm(all_of - centre, axis=1).max()
        if combine in (ROBUST["trimmed-mean"], ROBUST["median"]):
            assert (result <= all_of.max(axis=0) + 1e-6).all()
            assert (result >= all_of.min(axis=0) - 1e-6).all()
        elif combine is ROBUST["geometric-median"]:
            share = HOSTILE / 10
            bound = 2 * (1 - share) / (1 - 2 * share) * radius
            assert np.linalg.norm(result - centre) <= bound
        elif combine is ROBUST["multi-krum"]:
            assert np.linalg.norm(result - centre) <= radius
        else:  # two of ten sites, each no longer than the median
            norms = [np.linalg.norm(flat(change, tower)) for change in honest]
            assert np.linalg.norm(result - centre) <= 2 * 0.2 * max(norms) + radius


@pytest.mark.parametrize("name", ["scaled by a hundred", "flipped and scaled"])
def test_the_plain_mean_breaks_that_bound(name):
    honest, updates = federation(ATTACKS[name])
    found = mean_change(LAYOUT, updates)
    centre = np.mean([flat(change, "image") for change in honest], axis=0)
    assert np.linalg.norm(flat(found, "image") - centre) > 10 * np.linalg.norm(centre)


@each_rule
def test_among_honest_sites_the_result_is_near_the_mean(combine):
    honest, _ = federation(ATTACKS["nothing"])
    updates = updates_of(honest, [both(1)] * HONEST)
    found, mean = combine(LAYOUT, updates), mean_change(LAYOUT, updates)
    for tower in ("image", "text"):
        error = np.linalg.norm(flat(found, tower) - flat(mean, tower))
        assert error < 0.15 * np.linalg.norm(flat(mean, tower))


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(10)), combine=st.sampled_from(list(ROBUST.values())))
def test_the_order_of_sites_changes_no_bit(order, combine):
    _, updates = federation(ATTACKS["signs flipped"])
    one, other = combine(LAYOUT, updates), combine(LAYOUT, [updates[k] for k in order])
    assert all(np.array_equal(one[name], other[name]) for name in NAMES)


@each_rule
def test_identical_sites_give_what_the_mean_gives(combine):
    honest, _ = federation(ATTACKS["nothing"])
    updates = updates_of([honest[0]] * 7, [both(1)] * 7)
    found, mean = combine(LAYOUT, updates), mean_change(LAYOUT, updates)
    for name in NAMES:
        np.testing.assert_allclose(found[name], mean[name], atol=1e-7)


@pytest.mark.parametrize("combine", [coordinate_median, geometric_median, clipped_mean])
def test_one_site_gives_its_own_training(combine):
    honest, _ = federation(ATTACKS["nothing"])
    found = combine(LAYOUT, updates_of(honest[:1], [both(1)]))
    for name in NAMES:
        np.testing.assert_allclose(found[name], honest[0][name], atol=1e-6)


@pytest.mark.parametrize(("combine", "least"), [(TrimmedMean(2), 5), (MultiKrum(2), 7)])
def test_too_few_sites_of_a_tower_are_refused(combine, least):
    honest, _ = federation(ATTACKS["nothing"])
    enough = [both(1)] * least
    assert combine(LAYOUT, updates_of(honest[:least], enough))
    enough[0] = {"image": 1}
    with pytest.raises(QuorumError, match=f"text tower: {least - 1} sites .* at least {least}"):
        combine(LAYOUT, updates_of(honest[:least], enough))


@each_rule
def test_towers_are_spaces_of_their_own(combine):
    """Whoever is hostile in one tower does not count less in the other, nor the reverse."""
    honest, updates = federation(ATTACKS["scaled by a hundred"])
    alone = [{"text": 1} for _ in range(HONEST)]
    texts = combine(LAYOUT, updates_of(honest, alone))
    assert {LAYOUT.tower_of(name) for name in texts} == {"text"}
    mixed = updates_of([honest[0], *honest, honest[0]], [{"image": 1}, *alone, {"image": 1}])
    if combine not in (ROBUST["trimmed-mean"], ROBUST["multi-krum"]):  # two are too few for them
        again = combine(LAYOUT, mixed)
        for name, values in texts.items():
            np.testing.assert_allclose(again[name], values, atol=1e-6)
    assert combine(LAYOUT, updates)


@each_rule
@pytest.mark.parametrize("rule", ["fedavg", "ffa", "altfold"])
def test_every_adding_rule_adds_the_combined_change(combine, rule):
    name = next(name for name, each in ROBUST.items() if each is combine)
    hostile = 2 if name in ("trimmed-mean", "multi-krum") else 0
    aggregator = AGGREGATORS[rule](AggregateConfig(rule=rule, combine=name, hostile=hostile))
    assert COMBINERS[name](AggregateConfig(combine=name, hostile=hostile)) == combine
    _, updates = federation(ATTACKS["scaled by a hundred"])
    shared, _ = after_rounds(aggregator, 0)
    after = aggregator.aggregate(shared, LAYOUT, updates)
    step = combine(LAYOUT, updates)
    for factor in NAMES:
        np.testing.assert_array_equal(after.factors[factor], shared.factors[factor] + step[factor])
