"""``[proxy]``: what it goes with, and what is refused in one sentence."""

from typing import get_args

import pytest
from pydantic import ValidationError

from shared.config import AggregationRule, CombiningRule, JobConfig

SOUND = {("fedavg", "mean"), ("ffa", "mean"), ("altfold", "mean")}


def job_of(proxy, **tables):
    return JobConfig.model_validate({"name": "x", "proxy": proxy, **tables})


def refusal(proxy, **tables):
    with pytest.raises(ValidationError) as refused:
        job_of(proxy, **tables)
    (error,) = refused.value.errors()
    assert "\n" not in error["msg"]
    return error["msg"]


@pytest.mark.parametrize("combine", get_args(CombiningRule))
@pytest.mark.parametrize("rule", get_args(AggregationRule))
def test_every_rule_goes_with_it_or_is_refused(rule, combine):
    aggregate = {"rule": rule, "combine": combine}
    if combine in ("trimmed-mean", "multi-krum"):
        aggregate["hostile"] = 1
    try:
        JobConfig.model_validate({"name": "x", "aggregate": aggregate})
    except ValidationError:
        return  # without a proxy set, too
    if (rule, combine) in SOUND:
        assert job_of({"folder": "public"}, aggregate=aggregate).proxy.active
    else:
        assert "leave" in refusal({"folder": "public"}, aggregate=aggregate)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ({"steps": 70}, "proxy.steps has no pairs to work on; give proxy.folder"),
        ({"folder": "a", "phantoms": 64}, "two sets; leave one of them out"),
        ({"phantoms": 16}, "held_out = 0.25 leaves too few pairs .* give at least 32"),
        ({"phantoms": 64, "held_out": 0.05}, "give at least 160"),
        ({"phantoms": 3}, "greater than or equal to 16"),
        ({"folder": "a", "held_out": 1.0}, "less than 1"),
        ({"folder": ""}, "at least 1 character"),
    ],
)
def test_options_that_make_no_sense(proxy, words):
    with pytest.raises(ValidationError, match=words):
        job_of(proxy)


def test_made_up_pairs_are_not_for_records_of_ones_own():
    words = refusal({"phantoms": 64}, data={"folder": "records"})
    assert "give proxy.folder" in words


def test_the_digest_knows_what_is_done_but_not_where_the_set_lies():
    plain = JobConfig.model_validate({"name": "x"})
    assert job_of({}).digest() == plain.digest()
    assert not plain.proxy.active
    here, there = job_of({"folder": "a"}), job_of({"folder": "b"})
    assert here.digest() == there.digest() != plain.digest()
    assert job_of({"folder": "a", "weight": 0.0}).digest() != here.digest()
    assert job_of({"phantoms": 64}).digest() != job_of({"phantoms": 65}).digest()
