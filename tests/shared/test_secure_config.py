"""``privacy.secure_aggregation``: what it goes with, and what is refused in one sentence."""

from typing import get_args

import pytest
from pydantic import ValidationError

from shared.config import AggregationRule, CombiningRule, JobConfig, parse_job
from shared.config.privacy import plan_of

ON = {"secure_aggregation": True}
SUMS_ONLY = {"altfold", "ffa", "fedavg", "fedsa"}


def job_of(**tables):
    privacy = ON | tables.pop("privacy", {})
    return JobConfig.model_validate({"name": "x", "privacy": privacy, **tables})


def refusal(**tables):
    with pytest.raises(ValidationError) as refused:
        job_of(**tables)
    (error,) = refused.value.errors()
    assert "\n" not in error["msg"]
    return error["msg"]


def test_a_job_without_it_keeps_its_digest_and_with_it_has_another():
    plain = JobConfig(name="x")
    assert parse_job({"name": "x", "privacy": {"secure_aggregation": False}}).digest() == (
        plain.digest()
    )
    assert job_of().digest() != plain.digest()
    private = {"name": "x", "proxy": {"phantoms": 64}}
    noisy = {"differential_privacy": True, "epsilon": 8.0}
    both = parse_job({**private, "privacy": noisy | ON})
    assert both.digest() != parse_job({**private, "privacy": noisy}).digest()
    assert plan_of(both).secure_aggregation


@pytest.mark.parametrize("rule", get_args(AggregationRule))
def test_every_rule_goes_with_it_or_is_refused(rule):
    tables = {"aggregate": {"rule": rule}}
    if rule in ("fedsa", "creamfl"):
        tables["personalize"] = {"method": "own-factor"}
    if rule == "creamfl":
        tables["proxy"] = {"phantoms": 32}
    if rule in SUMS_ONLY:
        assert job_of(**tables).privacy.secure_aggregation
    else:
        assert "use altfold, ffa, fedavg or fedsa" in refusal(**tables)


@pytest.mark.parametrize("combine", [c for c in get_args(CombiningRule) if c != "mean"])
def test_rules_that_look_at_single_changes_are_refused(combine):
    aggregate = {"combine": combine}
    if combine in ("trimmed-mean", "multi-krum"):
        aggregate["hostile"] = 1
    assert "must see every site's change" in refusal(aggregate=aggregate)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"proxy": {"phantoms": 32}}, "it has no single adapter; leave [proxy] out"),
        ({"attack": {"sites": {"north": "flip"}}}, "leave [attack] out"),
        ({"aggregate": {"cohort": 4, "over_select": 1}}, "leave over_select out"),
        ({"aggregate": {"cohort": 2}}, "aggregate.cohort: 2"),
        ({"data": {"sites": ["a", "b"]}}, "data.sites: 2"),
        ({"data": {"phantom_sites": 2}}, "data.phantom_sites: 2"),
        ({"simulation": {"engine": "flower"}}, "use 'local'"),
    ],
)
def test_what_needs_single_sites_or_more_of_them_is_refused(tables, words):
    assert words in refusal(**tables)
    tables = {name: table for name, table in tables.items() if name != "privacy"}
    JobConfig.model_validate({"name": "x", **tables})  # all of it is fine without
