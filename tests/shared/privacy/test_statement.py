"""The block: everything the number depends on, or that nothing is claimed."""

import json
import math

import pytest
from pydantic import ValidationError

from shared.privacy.statement import (
    NO_CLAIM,
    NOT_COVERED,
    Claim,
    Statement,
    claimed,
    sampling_words,
    trust_of,
    unclaimed,
)

CLAIM = Claim(
    mode="local",
    mechanism="DP-SGD at the site",
    unit="patient",
    epsilon=3.1415,
    delta=1e-6,
    units=4200,
    clip=0.5,
    noise=(1.0, 1.5),
    sampling=sampling_words(0.05),
    steps=640,
    composed="80 rounds of 2 runs in 1 study",
    trust=trust_of("local"),
    accountant="privacy loss distributions (dp-accounting) 0.6.0",
    audit_bound=0.8,
    audit_confidence=0.999,
)


def test_the_block_says_everything():
    text = claimed(CLAIM).text()
    assert text.splitlines()[0] == "(3.15, 1e-06)-differential privacy"
    for part in (
        "DP-SGD at the site", "patient (about 4200)", "one patient added or removed",
        "3.15 at delta 1e-06", "L2 norm 0.5 per patient", "1, 1.5 times what one patient",
        "Poisson, q = 0.05", "640", "80 rounds of 2 runs", "the site's own machine",
        "dp-accounting) 0.6.0", "epsilon is at least 0.8 (confidence 0.999)", *NOT_COVERED,
    ):  # fmt: skip
        assert part in text


def test_epsilon_is_never_rounded_down():
    for epsilon, shown in ((3.1401, "3.15"), (0.812345, "0.813"), (12.31, "12.4"), (2.0, "2")):
        assert f"({shown}, " in claimed(CLAIM.model_copy(update={"epsilon": epsilon})).text()


def test_json_and_text_are_of_one_statement():
    statement = claimed(CLAIM)
    tree = json.loads(json.dumps(statement.tree()))
    assert Statement.read(tree) == statement
    assert tree["text"] == statement.text().splitlines()[0]
    assert tree["claim"]["noise"] == [1.0, 1.5]
    nothing = unclaimed("there is no noise")
    assert Statement.read(json.loads(json.dumps(nothing.tree()))) == nothing


def test_no_claim_has_its_words_and_its_reasons():
    assert unclaimed().text() == NO_CLAIM == "no differential privacy claim"
    assert unclaimed("a", "b").text().splitlines() == [NO_CLAIM, "  because a", "  because b"]


def test_an_attack_that_measured_more_takes_the_claim_away():
    refuted = claimed(CLAIM.model_copy(update={"audit_bound": 3.2}))
    assert refuted.claim is None
    assert refuted.text().startswith(NO_CLAIM)
    assert "3.2 or more where 3.15" in refuted.text()
    assert claimed(CLAIM.model_copy(update={"audit_bound": 3.1})).claim


def test_infinity_is_no_claim_and_more_than_twenty_is_weak():
    assert claimed(CLAIM.model_copy(update={"epsilon": math.inf})).claim is None
    weak = claimed(CLAIM.model_copy(update={"epsilon": 20.1})).text()
    assert weak.splitlines()[0].endswith("; weak: no meaningful guarantee")
    assert "weak" not in claimed(CLAIM.model_copy(update={"epsilon": 20.0})).text()


def test_unmeasured_says_so():
    text = claimed(CLAIM.model_copy(update={"audit_bound": None})).text()
    assert text.splitlines()[-1].split() == ["measured", "not", "measured"]


@pytest.mark.parametrize("change", [{"delta": 0.0}, {"clip": 0.0}, {"extra": 1}, {"epsilon": -1}])
def test_refuses_statements_that_make_no_sense(change):
    with pytest.raises(ValidationError):
        Claim(**{**CLAIM.model_dump(), **change})


def test_all_patients_in_every_step_is_no_sampling():
    assert sampling_words(1) == "none: all in every step"
