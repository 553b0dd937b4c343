"""The shares of every partition, by numbers that can be checked by hand, and their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import PartitionConfig
from shared.errors import ConfigError
from simulations.partition import PARTITIONS
from simulations.partition.dirichlet import dirichlet
from simulations.partition.divide import divide, largest_remainder
from simulations.partition.pathological import assigned_classes, pathological
from simulations.partition.quantity import quantity


def rng(seed=0):
    return np.random.default_rng(seed)


def test_dirichlet_is_even_for_a_large_alpha_and_one_site_per_class_for_a_small_one():
    counts = np.array([100, 50, 10])
    even = dirichlet(counts, 4, 1e6, rng())
    assert np.abs(even - 1 / 4).max() < 0.005
    lone = dirichlet(counts, 4, 1e-3, rng())
    assert (lone.max(axis=1) > 0.99).all()


def test_dirichlet_has_the_variance_of_its_distribution():
    """Var p_kj = m (1 - m) / (sites alpha + 1) with mean m = 1 / sites: 3/16 / 3 = 0.0625."""
    drawn = dirichlet(np.ones(20_000, np.int64), 4, 0.5, rng())
    assert drawn.mean(axis=0) == pytest.approx([1 / 4] * 4, abs=0.01)
    assert drawn.var(axis=0) == pytest.approx([0.0625] * 4, abs=0.002)


def test_self_balancing_gives_nothing_more_to_a_site_over_its_even_share():
    counts = np.array([90, 5, 5])
    for seed in range(20):
        shares = dirichlet(counts, 2, 1e-3, rng(seed), self_balancing=True)
        full = int(shares[0].argmax())  # has about 90 of 100, the even share is 50
        assert shares[1, full] == shares[2, full] == 0
        assert shares.sum(axis=1) == pytest.approx([1, 1, 1])


def test_deterministic_classes_follow_each_other():
    has = assigned_classes(3, 4, 2, "deterministic", rng())
    assert [sorted(np.flatnonzero(has[:, s])) for s in range(4)] == [[0, 1], [1, 2], [0, 2], [0, 1]]
    # Class 0 is at sites 0, 2 and 3; class 2 at sites 1 and 2.
    assert pathological(has).tolist() == [
        [1 / 3, 0, 1 / 3, 1 / 3],
        [1 / 3, 1 / 3, 0, 1 / 3],
        [0, 1 / 2, 1 / 2, 0],
    ]


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_every_site_has_so_many_classes(classes, sites, data):
    per_site = data.draw(st.integers(1, classes))
    how = data.draw(st.sampled_from(["random", "first-deterministic", "deterministic"]))
    has = assigned_classes(classes, sites, per_site, how, rng(data.draw(st.integers(0, 99))))
    assert (has.sum(axis=0) == per_site).all()
    if how == "first-deterministic":
        assert all(has[site % classes, site] for site in range(sites))


def test_classes_that_would_be_at_no_site_are_refused():
    config = PartitionConfig(by="pathological", sites=2, classes_per_site=1)
    with pytest.raises(ConfigError, match="more sites or classes_per_site"):
        PARTITIONS["pathological"](np.ones(3, np.int64), config, rng())
    config = PartitionConfig(by="pathological", sites=2, classes_per_site=4)
    with pytest.raises(ConfigError, match="there are only 3 classes; lower it"):
        PARTITIONS["pathological"](np.ones(3, np.int64), config, rng())


def test_sizes_grow_as_their_name_says():
    assert quantity(4, "equal", 1.0, rng()).tolist() == [1 / 4] * 4
    assert quantity(4, "linear", 1.0, rng()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert quantity(3, "square", 1.0, rng()) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    # 1 : e : e^2 over their sum 11.107
    assert quantity(3, "exponential", 1.0, rng()) == pytest.approx(
        [0.0900, 0.2447, 0.6652], abs=1e-4
    )
    assert np.isfinite(quantity(2000, "exponential", 1.0, rng())).all()
    assert quantity(3, "dirichlet", 1e6, rng()) == pytest.approx([1 / 3] * 3, abs=0.005)


@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=60),
    st.integers(1, 6),
    st.integers(0, 999),
)
def test_parts_are_within_one_of_their_share_and_add_up(groups, sites, seed):
    shares = rng(seed).dirichlet(np.ones(sites), 4)
    places = divide(np.array(groups, np.int64), shares, rng(seed))
    for group in set(groups):
        members = np.array(groups) == group
        counts = np.bincount(places[members], minlength=sites)
        assert counts.sum() == members.sum()
        assert np.abs(counts - shares[group] * members.sum()).max() < 1 + 1e-6


def test_lone_patients_go_to_every_site_by_its_share():
    """Rounded down, as elsewhere, all of them would go to the last site."""
    shares = np.array([[0.5, 0.25, 0.25]])
    counts = np.zeros(3)
    for seed in range(400):
        counts[divide(np.zeros(1, np.int64), shares, rng(seed))[0]] += 1
    assert counts / 400 == pytest.approx([0.5, 0.25, 0.25], abs=0.07)


def test_a_share_of_nothing_gets_nobody_and_even_shares_are_even():
    shares = np.array([[0, 1 / 3, 1 / 3, 1 / 3, 0]])
    for seed in range(50):
        places = divide(np.zeros(9, np.int64), shares, rng(seed))
        assert np.bincount(places, minlength=5).tolist() == [0, 3, 3, 3, 0]


def test_largest_remainder():
    assert largest_remainder(10, np.array([0.5, 0.26, 0.24])).tolist() == [5, 3, 2]
    assert largest_remainder(3, np.array([1 / 3] * 3)).tolist() == [1, 1, 1]
    assert largest_remainder(1, np.array([0.5, 0.5])).tolist() == [1, 0]
