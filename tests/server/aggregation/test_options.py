"""Every combination of options either carries a round or is refused with reason and remedy."""

import itertools
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from server.aggregation import AGGREGATORS, COMBINERS
from shared.config import (
    AggregateConfig,
    AggregationRule,
    CombiningRule,
    JobConfig,
    PersonalizationMethod,
)
from tests.server.aggregation.sites_in_memory import (
    LAYOUT,
    after_rounds,
    both,
    changes_of,
    updates_of,
)

SITES = 5
OPTIONS = {
    "rule": get_args(AggregationRule),
    "combine": get_args(CombiningRule),
    "hostile": (None, 1, 2),
    "tail": (None, "fold"),
    "server_optimizer": (None, "momentum", "yogi"),
    "fold_every": (None, 0, 2),
    "server_learning_rate": (None, 0.5),
    "weighting": (None, "size"),
    "cohort": (None, 4),
}
REMEDIES = ("leave", "give", "use", "raise", "needs altfold or ffa", "lower")


def test_all_names_of_the_config_have_a_rule():
    assert set(get_args(AggregationRule)) == set(AGGREGATORS)
    assert set(get_args(CombiningRule)) == set(COMBINERS)


def test_the_whole_product_of_options():
    """Thousands of combinations: nothing falls between a round and a refusal."""
    carried = refused = 0
    rounds: dict[str, bool] = {}
    for values in itertools.product(*OPTIONS.values()):
        given = {k: v for k, v in zip(OPTIONS, values, strict=True) if v is not None}
        config = AggregateConfig(**given)
        why = config.unsound()
        if why is None:
            if config.combine in ("trimmed-mean", "multi-krum") and config.hostile > 1:
                carried += 1  # five sites are too few; tests of the rules look at that
                continue
            key = repr(AGGREGATORS[config.rule](config))
            if key not in rounds:
                rounds[key] = one_round(config)
            assert rounds[key]
            carried += 1
        else:
            assert why.startswith("aggregate.")
            assert any(remedy in why for remedy in REMEDIES), why
            refused += 1
    assert carried > 200
    assert refused > 2000


def one_round(config):
    if config.shares_features:
        return True  # it takes no change of an adapter; test_creamfl.py has its rounds
    rule = AGGREGATORS[config.rule](config)
    shared, number = after_rounds(rule, 1, sites=SITES)
    changes = [changes_of(rule, number, k) for k in range(SITES)]
    after = rule.aggregate(shared, LAYOUT, updates_of(changes, [both(1)] * SITES))
    finite = all(np.isfinite(values).all() for values in after.factors.values())
    return finite and after.sha256() != shared.sha256()


def test_the_product_of_rules_with_what_other_tables_say():
    """Rule, combining, personalization and rank per site: each a job that runs, or a sentence."""
    tables = itertools.product(
        get_args(AggregationRule),
        ("mean", "clipped-mean", "median"),
        (None, *get_args(PersonalizationMethod)),
        ({}, {"north": 2}, {"north": 8}),
    )
    allowed = refused = 0
    for rule, combine, method, ranks in tables:
        if rule == "creamfl":
            continue  # needs a public set; tests of its own
        job = {"name": "x", "aggregate": {"rule": rule, "combine": combine}}
        job |= {"lora": {"rank": 8, "ranks": ranks}, "personalize": {"method": method or "none"}}
        if method is None:
            del job["personalize"]
        smaller = min(ranks.values(), default=8) < 8
        fits = (rule == "fedsa") == (method == "own-factor") or (rule == "fedsa" and not method)
        fits = fits and not (smaller and (rule == "fedsa" or combine == "median"))
        fits = fits and (combine == "mean" or rule not in ("flexlora", "fedex", "flora"))
        try:
            made = JobConfig.model_validate(job)
        except ValidationError as error:
            why = str(error.errors()[0]["msg"])
            assert not fits, (rule, combine, method, ranks, why)
            assert any(remedy in why for remedy in REMEDIES), why
            refused += 1
        else:
            assert fits, (rule, combine, method, ranks)
            assert rule in AGGREGATORS
            assert made.personalize.method == method or method is None
            allowed += 1
    assert allowed > 200
    assert refused > 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "fedsa", "fold_every": 2}, "no product that all sites share"),
        ({"rule": "flexlora", "fold_every": 2}, "flexlora has its own way with the base"),
        ({"rule": "fedavg", "fold_every": 2}, "must not be folded"),
        ({"rule": "fedex", "tail": "fold"}, "fedex cuts no tail off"),
        ({"rule": "flora", "combine": "median"}, "one hostile site can move anywhere"),
        ({"rule": "fedex", "server_learning_rate": 0.5}, "takes no step"),
        ({"combine": "median", "weighting": "size"}, "counts every site once"),
        ({"combine": "trimmed-mean"}, "would leave nobody out"),
        ({"combine": "multi-krum", "hostile": 2, "cohort": 6}, "needs 7 sites"),
        ({"combine": "trimmed-mean", "hostile": 2, "quorum": 4}, "needs 5 sites"),
        ({"combine": "geometric-median", "hostile": 1}, "does not ask how many"),
        ({"server_optimizer": "adam"}, "turn or replace the factors"),
        ({"rule": "ffa", "server_optimizer": "adam", "fold_every": 2}, "turn or replace"),
        ({"cohort": 3, "quorum": 4}, "can never be met"),
    ],
)
def test_a_job_is_refused_in_one_sentence(options, words):
    with pytest.raises(ValidationError, match=words) as refused:
        JobConfig.model_validate({"name": "x", "aggregate": options})
    assert "\n" not in str(refused.value.errors()[0]["msg"])


def test_a_job_keeps_its_meaning_on_its_way_through_a_message():
    for options in ({"rule": "flexlora"}, {"combine": "multi-krum", "hostile": 1}):
        job = JobConfig.model_validate({"name": "x", "aggregate": options})
        again = JobConfig.model_validate(job.model_dump(mode="json"))
        assert again == job
        assert again.digest() == job.digest()
    assert job.aggregate.weighting == "equal"


def test_what_a_rule_must_see():
    assert not AggregateConfig(rule="altfold").needs_every_change
    assert AggregateConfig(rule="altfold", combine="median").needs_every_change
    assert AggregateConfig(rule="fedex").needs_every_change
    assert AggregateConfig(rule="ffa").applies_the_mean
    assert not AggregateConfig(rule="ffa", combine="median").applies_the_mean
