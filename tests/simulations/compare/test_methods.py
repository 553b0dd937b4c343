"""Names of methods, and what is said about wrong ones."""

import pytest

from shared.errors import ConfigError
from simulations.compare.methods import Method, parse_methods


def test_a_method_is_a_rule_with_what_follows_in_either_order():
    found = parse_methods("fedavg, altfold+duet,fedavg+median+finetune,fedavg+finetune+median")
    assert found == (
        Method("fedavg"), Method("altfold", "duet"), Method("fedavg", "finetune", "median"),
    )  # fmt: skip
    assert [each.name for each in found] == ["fedavg", "altfold+duet", "fedavg+median+finetune"]
    assert [each.personal for each in found] == [False, True, True]


def test_none_and_mean_are_what_a_bare_rule_means_and_references_are_always_there():
    assert parse_methods("fedsa,fedsa+own-factor") == (Method("fedsa", "own-factor"),)
    assert parse_methods("ffa+none,ffa,ffa+mean,local,centralised") == (Method("ffa"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected at least one rule"),
        (" , ", "expected at least one rule"),
        ("local", "expected at least one rule"),
        ("fedavgg", "unknown aggregation rule 'fedavgg'"),
        ("altfolt+duet", "did you mean 'altfold'?"),
        ("fedavg+dueet", "did you mean 'duet'?"),
        ("fedavg+", "unknown personalization ''"),
        ("fedavg+duet+finetune", "'duet' and 'finetune' are two of a kind"),
        ("fedavg+median+trimmed-mean", "two of a kind"),
    ],
)
def test_wrong_names_are_refused(text, says):
    with pytest.raises(ConfigError, match="--methods") as refused:
        parse_methods(text)
    assert says in str(refused.value)
