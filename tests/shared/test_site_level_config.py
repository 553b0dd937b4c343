"""``privacy.mode = 'site-level'`` in a job: what it implies, what it refuses, who is promised."""

import pytest

from shared.config import JobConfig, parse_job
from shared.config.privacy import plan_of
from shared.errors import ConfigError
from shared.privacy.objections import objections

ASKED = {
    "differential_privacy": True,
    "mode": "site-level",
    "unit": "site",
    "epsilon": 8.0,
    "delta": 1e-3,
}


def with_tables(**tables):
    tree = {"name": "sites", "privacy": dict(ASKED)}
    for name, values in tables.items():
        tree[name] = {**tree.get(name, {}), **values}
    return parse_job(tree)


def test_it_implies_equal_weights_and_one_norm_and_asks_nothing_of_the_sites():
    job = with_tables(privacy={"clip_norm": 0.25})
    assert job.privacy.for_sites
    assert not job.privacy.for_patients
    assert (job.aggregate.weighting, job.aggregate.clip_norm) == ("equal", 0.25)
    assert with_tables().aggregate.clip_norm == with_tables().privacy.clip_norm == 1.0
    assert job.model.precision == JobConfig(name="x").model.precision
    assert not job.sites_have_public_set
    assert parse_job(job.model_dump(mode="json")) == job
    assert with_tables(aggregate={"clip_norm": 1.0}) == with_tables()


def test_the_plan_hides_what_a_site_sent():
    plan = plan_of(with_tables(), noise=2.0)
    assert (plan.mode, plan.unit, plan.adjacency) == ("site-level", "site", "zero-out")
    assert (plan.clipped, plan.sensitivity, plan.sampling, plan.rate) == ("site", 1.0, "all", 1.0)
    assert not objections(plan)


@pytest.mark.parametrize(
    "tables",
    [
        {"aggregate": {"rule": "altfold"}},
        {"aggregate": {"rule": "ffa", "fold_every": 0, "server_optimizer": "momentum"}},
        {"aggregate": {"rule": "fedavg", "server_learning_rate": 0.5}},
        {"train": {"epochs": 1.0, "balance": 0.3}},
        {"privacy": {"secure_aggregation": True}},
        {"privacy": {"epsilon": None, "noise_multiplier": 4.0}},
        {"lora": {"rank": 8, "ranks": {"a": 4}}},
        {"personalize": {"method": "duet"}},
    ],
)
def test_sites_train_as_without_privacy(tables):
    assert with_tables(**tables).privacy.for_sites


def test_digests_tell_modes_apart_and_those_of_other_jobs_stay():
    plain = "da49ee7faef2396a456b708cc297347dd56455f348cdbd4896bb8d06fa263db4"
    assert parse_job({"name": "x"}).digest() == plain
    patients = {
        "name": "private",
        "proxy": {"phantoms": 64},
        "privacy": {"differential_privacy": True, "epsilon": 8.0},
    }
    before = "87fac134866b554b5be471678ad9461a127e12704b243f24207ba45081d38d63"
    assert parse_job(patients).digest() == before
    jobs = [
        with_tables(),
        with_tables(privacy={"delta": 1e-4}),
        with_tables(privacy={"clip_norm": 2.0}),
        with_tables(privacy={"epsilon": 7.0}),
    ]
    assert len({job.digest() for job in jobs} | {plain, before}) == 6


REFUSED = {
    "unit": ({"privacy": {"unit": "patient"}}, "privacy.unit", "goes with unit = 'site'"),
    "mode": ({"privacy": {"mode": "local"}}, "privacy.unit", "goes with unit = 'site'"),
    "no noise": (
        {"privacy": {"noise_multiplier": 0.0, "epsilon": None}},
        "privacy.noise_multiplier",
        "clipping without noise hides nobody",
    ),
    "no amount": ({"privacy": {"epsilon": None}}, "privacy.epsilon", "needs an amount"),
    "two amounts": ({"privacy": {"noise_multiplier": 1.0}}, "privacy.epsilon", "leave one"),
    "two norms": ({"aggregate": {"clip_norm": 16.0}}, "aggregate.clip_norm", "is cut once"),
    "objective": ({"privacy": {"objective": "in-batch"}}, "privacy.objective", "train without"),
    "grouped": ({"privacy": {"objective": "grouped"}}, "privacy.objective", "train without"),
    "sampling": ({"privacy": {"sampling": "shuffled"}}, "privacy.sampling", "train without"),
    "rate": ({"privacy": {"sampling_rate": 0.1}}, "privacy.sampling_rate", "leave it out"),
    "weights": ({"aggregate": {"weighting": "sqrt"}}, "aggregate.weighting", "use 'equal'"),
    "cohort": ({"aggregate": {"cohort": 4}}, "aggregate.cohort", "all sites are asked"),
    "over": ({"aggregate": {"over_select": 2}}, "aggregate.over_select", "all sites are asked"),
    "median": ({"aggregate": {"combine": "median"}}, "aggregate.combine", "use 'mean'"),
    "clipped": ({"aggregate": {"combine": "clipped-mean"}}, "aggregate.combine", "use 'mean'"),
    **{
        rule: ({"aggregate": {"rule": rule}}, f"aggregate.rule = '{rule}'", "multiplies every")
        for rule in ("flexlora", "fedex", "flora")
    },
    "fedsa": ({"aggregate": {"rule": "fedsa"}}, "aggregate.rule", "would cover no model"),
    "creamfl": ({"aggregate": {"rule": "creamfl"}}, "aggregate.rule", "exchanges features"),
    "proxy": ({"proxy": {"phantoms": 64}}, "proxy", "leave [proxy] out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_hold_is_refused_by_the_field(name):
    tables, field, words = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        with_tables(**tables)
    assert field in str(refused.value)
    assert words in str(refused.value)
