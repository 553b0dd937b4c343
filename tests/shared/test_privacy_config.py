"""``[privacy]`` of a job: what it implies, what it refuses, and that without it nothing changes."""

import pytest

from shared.config import JobConfig, PrivacyConfig, parse_job
from shared.config.privacy import plan_of
from shared.errors import ConfigError
from shared.privacy.objections import objections

PRIVATE = {
    "name": "private",
    "proxy": {"phantoms": 64},
    "privacy": {"differential_privacy": True, "epsilon": 8.0},
}


def with_tables(**tables):
    tree = {name: dict(values) if isinstance(values, dict) else values
            for name, values in PRIVATE.items()}  # fmt: skip
    for name, values in tables.items():
        tree[name] = {**tree.get(name, {}), **values}
    return tree


def test_a_job_without_privacy_keeps_its_digest():
    # As it was before there was any of this.
    assert JobConfig(name="x").digest() == (
        "da49ee7faef2396a456b708cc297347dd56455f348cdbd4896bb8d06fa263db4"
    )
    assert parse_job({"name": "x", "privacy": {"differential_privacy": False}}).digest() == (
        JobConfig(name="x").digest()
    )


def test_every_number_of_the_privacy_changes_the_digest():
    digests = {parse_job(PRIVATE).digest()}
    for key, value in (("delta", 1e-6), ("sampling_rate", 0.3), ("clip_norm", 0.5)):
        digests.add(parse_job(with_tables(privacy={key: value})).digest())
    digests.add(parse_job(with_tables(proxy={"phantoms": 128})).digest())
    assert len(digests) == 5


def test_a_set_that_every_site_has_is_named_by_its_content_alone():
    named = {"phantoms": None, "sha256": "a" * 64}
    job = parse_job(with_tables(proxy=named))
    with_folder = parse_job(with_tables(proxy={**named, "folder": "public"}))
    assert job.digest() == with_folder.digest()
    assert job.digest() != parse_job(with_tables(proxy={**named, "sha256": "b" * 64})).digest()


def test_groups_are_told_to_the_accountant_with_twice_the_norm():
    job = parse_job(with_tables(privacy={"objective": "grouped", "group_size": 16}))
    plan = plan_of(job)
    assert (plan.clipped, plan.sensitivity, plan.grouping) == ("group", 2.0, "own-draw")
    assert plan.objective == "in-batch"
    assert not objections(plan)
    other = parse_job(with_tables(privacy={"objective": "grouped"}))
    assert len({job.digest(), other.digest(), parse_job(PRIVATE).digest()}) == 3


def test_privacy_implies_equal_weights_and_single_precision_and_no_distillation():
    job = parse_job(PRIVATE)
    assert (job.aggregate.weighting, job.model.precision) == ("equal", "float32")
    assert job.sites_have_public_set
    assert not job.distils
    assert not objections(plan_of(job))
    assert parse_job(job.model_dump(mode="json")) == job


@pytest.mark.parametrize("rule", ["fedavg", "ffa", "altfold", "flexlora"])
def test_rules_that_see_noised_changes_only_can_be_private(rule):
    assert parse_job(with_tables(aggregate={"rule": rule})).aggregate.rule == rule


REFUSED = {
    "group-size": ({"privacy": {"group_size": 16}}, "privacy.group_size", "objective = 'grouped'"),
    "in-batch": ({"privacy": {"objective": "in-batch"}}, "privacy.objective", "public or released"),
    "shuffled": ({"privacy": {"sampling": "shuffled"}}, "privacy.sampling", "ten times too small"),
    "record": ({"privacy": {"unit": "record"}}, "privacy.unit", "use unit = 'patient'"),
    "site": ({"privacy": {"unit": "site"}}, "privacy.unit", "must not be claimed for the other"),
    "no noise": (
        {"privacy": {"noise_multiplier": 0.0, "epsilon": None}},
        "privacy.noise_multiplier",
        "clipping without noise hides nobody",
    ),
    "no amount": ({"privacy": {"epsilon": None}}, "privacy.epsilon", "needs an amount"),
    "two amounts": (
        {"privacy": {"noise_multiplier": 1.0}},
        "privacy.noise_multiplier",
        "leave one",
    ),
    "no bank": (
        {"proxy": {"phantoms": None}},
        "proxy.folder",
        "negatives of a record are the pairs",
    ),
    "weights": ({"aggregate": {"weighting": "size"}}, "aggregate.weighting", "exact number"),
    "epochs": ({"train": {"epochs": 1.0}}, "train.epochs", "give train.steps"),
    "balance": ({"train": {"balance": 0.5}}, "train.balance", "before there is noise"),
    "bfloat16": ({"model": {"precision": "bfloat16"}}, "model.precision", "use 'float32'"),
    "auto": ({"model": {"precision": "auto"}}, "model.precision", "use 'float32'"),
    "ranks": ({"lora": {"ranks": {"a": 4}}}, "lora.ranks", "leave it out"),
    "own factor": ({"aggregate": {"rule": "fedsa"}}, "aggregate.rule", "released adapters only"),
    "features": ({"aggregate": {"rule": "creamfl"}}, "aggregate.rule", "released adapters only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_hold_is_refused_by_the_field(name):
    tables, field, words = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        parse_job(with_tables(**tables))
    assert field in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize("key", ["epsilon", "noise_multiplier", "sampling_rate"])
def test_an_amount_without_the_switch_is_refused(key):
    with pytest.raises(ConfigError, match=rf"privacy\.{key} says nothing without"):
        parse_job({"name": "x", "privacy": {key: 0.5}})


@pytest.mark.parametrize(
    ("key", "value"), [("delta", 0.0), ("delta", 1.0), ("clip_norm", 0.0), ("sampling_rate", 1.5)]
)
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"privacy\.{key}"):
        parse_job(with_tables(privacy={key: value}))


def test_there_is_no_privacy_unless_a_job_asks():
    assert not PrivacyConfig().differential_privacy
