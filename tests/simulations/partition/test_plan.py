"""From a population to sites: nobody lost, nobody twice, and the same whatever the rows' order."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import PartitionConfig
from shared.errors import ConfigError
from simulations.partition.plan import numbered, plan_sites
from simulations.partition.pool import classes_of_column, classes_of_labels

QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONFIGS = st.sampled_from(
    [
        {"by": "iid", "sites": 3},
        {"by": "dirichlet", "sites": 3, "alpha": 0.5},
        {"by": "dirichlet", "sites": 2, "alpha": 0.1, "self_balancing": True},
        {"by": "dirichlet", "sites": 2, "column": "scanner"},
        {"by": "pathological", "sites": 4, "classes_per_site": 2},
        {"by": "quantity", "sites": 3, "sizes": "square"},
        {"by": "quantity", "sites": 3, "sizes": "dirichlet", "alpha": 2.0},
        {"by": "column", "column": "scanner"},
    ]
)


@pytest.fixture(scope="module")
def population(record_of):
    """60 patients of 1 to 3 records, 3 findings, 2 scanners, 4 training patients of 6."""
    records = []
    for n in range(60):
        split = ("train", "train", "val", "train", "test", "train")[n % 6]
        label = ("edema", "edema;nodule", "fracture")[n // 6 % 3]
        records += [
            record_of(f"p{n:02}", label, split, study, value=f"scanner-{n % 2}")
            for study in range(1 + n % 3)
        ]
    return records


def ids(plan):
    return [(r.patient, r.file_name) for r in plan.records]


@QUICK
@given(CONFIGS, st.integers(0, 2**32 - 1), st.randoms())
def test_every_patient_is_at_exactly_one_site_whatever_the_order(
    population, pool_of, tree, seed, order
):
    config = PartitionConfig.model_validate({"min_size": 1, **tree})
    plans = plan_sites(pool_of(population), config, seed)
    everybody = [(r.patient, r.file_name) for r in population]
    assert sorted(item for plan in plans for item in ids(plan)) == sorted(everybody)
    sites = Counter(patient for plan in plans for patient in {p for p, _ in ids(plan)})
    assert set(sites.values()) == {1}
    assert all(any(r.split == "train" for r in plan.records) for plan in plans)
    mixed = list(population)
    order.shuffle(mixed)
    mixed = [replace(r, row=number) for number, r in enumerate(mixed)]
    again = plan_sites(pool_of(mixed), config, seed)
    assert [ids(plan) for plan in again] == [ids(plan) for plan in plans]


def test_another_seed_is_another_partition(population, pool_of):
    config = PartitionConfig(by="dirichlet", sites=3)
    first, second = (plan_sites(pool_of(population), config, seed) for seed in (1, 2))
    assert [ids(plan) for plan in first] != [ids(plan) for plan in second]


def test_an_infinite_alpha_gives_every_site_the_same_in_every_split(population, pool_of):
    plans = plan_sites(pool_of(population), PartitionConfig(by="dirichlet", sites=2, alpha=1e6), 1)
    for split in ("train", "val", "test"):
        for label in ("edema", "edema;nodule", "fracture"):
            a, b = (
                len({r.patient for r in p.records if (r.split, r.labels) == (split, label)})
                for p in plans
            )
            assert abs(a - b) <= 2


def test_a_tiny_alpha_gives_every_class_to_one_site(population, pool_of):
    plans = plan_sites(pool_of(population), PartitionConfig(by="dirichlet", sites=2, alpha=1e-3), 1)
    for label in ("edema", "edema;nodule", "fracture"):
        holders = [plan.name for plan in plans if any(r.labels == label for r in plan.records)]
        assert len(holders) == 1


def test_a_column_makes_its_values_sites(population, pool_of):
    plans = plan_sites(pool_of(population), PartitionConfig(by="column", column="scanner"), 1)
    assert [plan.name for plan in plans] == ["scanner-0", "scanner-1"]
    assert {r.value for r in plans[0].records} == {"scanner-0"}


def test_a_patient_s_class_is_its_most_frequent_finding_and_the_rarer_of_two(record_of, pool_of):
    records = [
        record_of("a", "edema", number=0),
        record_of("a", "edema;nodule", number=1),
        record_of("b", "edema;nodule"),
        record_of("c", "None"),
        record_of("d", ""),
        record_of("e", "edema"),
    ]
    classes = classes_of_labels(pool_of(records))
    assert list(classes.values()) == ["edema", "nodule", "none", "not labelled", "edema"]


def test_a_patient_seen_at_two_places_is_at_the_more_frequent_one(record_of, pool_of):
    values = ("north", "south", "south")
    records = [record_of("a", number=n, value=value) for n, value in enumerate(values)]
    assert [*classes_of_column(pool_of(records)).values()] == ["south"]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"by": "iid", "sites": 50}, ["site-", "training record", "lower partition.sites"]),
        (
            {"by": "dirichlet", "sites": 5, "alpha": 0.001, "min_size": 3},
            ["best of 20 draws", "min_size = 3", "raise partition.alpha"],
        ),
        ({"by": "column", "column": "scanner", "min_size": 60}, ["'scanner-0'", "join that value"]),
        ({"noisy_pairs": {"scaner-1": 0.1}}, ["noisy_pairs", "did you mean 'scanner-1'"]),
    ],
)
def test_sites_that_would_be_empty_are_refused_by_name(population, pool_of, tree, words):
    with pytest.raises(ConfigError) as caught:
        plan_sites(pool_of(population), PartitionConfig.model_validate(tree), 1)
    for word in words:
        assert word in str(caught.value)


def test_a_kind_that_nobody_could_have_is_refused(record_of, pool_of):
    texts = [record_of(f"p{n}", file_name="") for n in range(8)]
    config = PartitionConfig(by="iid", sites=2, kinds={"paired": 0.5, "image": 0.5})
    with pytest.raises(ConfigError, match=r"kind 'image'.*change partition\.kinds"):
        plan_sites(pool_of(texts), config, 1)


def test_names_that_cannot_be_folders_are_refused_by_row(record_of, pool_of):
    records = [record_of(f"p{n}", value="a/b" if n else "x") for n in range(4)]
    with pytest.raises(ConfigError, match="row 2 cannot be a site's name"):
        plan_sites(pool_of(records), PartitionConfig(by="column", column="c"), 1)
    with pytest.raises(ConfigError, match="1 patients have no value"):
        plan_sites(
            pool_of([*records, record_of("q", number=7)]),
            PartitionConfig(by="column", column="c"),
            1,
        )


def test_numbers_sort_as_names():
    assert numbered(2) == ["site-01", "site-02"]
    assert numbered(100) == sorted(numbered(100))
