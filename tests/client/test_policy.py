"""A site's policy allows what it names, and says of a job everything that it does not allow."""

import logging
import os
import re
import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from client.decisions import NOBODY, Party, about_request, refuse
from client.policy import PolicyFile, SitePolicy, simulation_policy
from client.release import REFUSALS
from shared.config import parse_job
from shared.errors import ConfigError, RefusedError
from shared.messages import SECURE_KINDS, Request

BASE, KEY = "b" * 64, "a" * 64
TODAY = date(2026, 11, 21)
NAMED = {
    "purpose": "retrieval of radiographs",
    "expires": date(2026, 12, 31),
    "coordinators": [KEY],
    "base_sha256": [BASE],
    "requests": ["any"],
    "rules": ["altfold"],
    "personalization": ["duet"],
    "targets": ["attention", "mlp", "projection"],
}
PARTY = Party(KEY, 5)
SITE_LEVEL = {"differential_privacy": True, "mode": "site-level", "unit": "site", "epsilon": 8.0}
"""Hides whole sites, and promises patients nothing."""


def policy(**changes):
    return SitePolicy.model_validate({**NAMED, **changes})


def request(kind="train", round_number=1, cohort=5, base=BASE, **job):
    config = parse_job({"name": "job", "rounds": 5, **job})
    return Request(
        kind=kind,
        run="run",
        round=round_number,
        cohort=cohort,
        base_sha256=base,
        job_sha256=config.digest(),
        job=config,
    )


def found(asked, party=PARTY, today=TODAY, **changes):
    """Return the objections as (code, field)."""
    said = about_request(policy(**changes), asked, party, today)
    return [(each.reason, each.field) for each in said]


def test_an_ordinary_job_is_allowed_by_a_policy_that_names_it():
    assert found(request()) == []
    assert about_request(simulation_policy(), request(), NOBODY, TODAY) == []


def test_a_policy_that_names_nothing_allows_nothing():
    said = about_request(SitePolicy(), request(), PARTY, TODAY)
    assert {each.reason for each in said} == {
        "policy-purpose", "policy-expired", "policy-coordinator", "policy-request", "policy-base",
        "policy-rule", "policy-personalization", "policy-targets",
    }  # fmt: skip
    for kind in ("describe", "train", "personalize", "evaluate"):
        with pytest.raises(RefusedError):
            refuse(about_request(SitePolicy(), request(kind), PARTY, TODAY))


def test_a_training_is_masked_if_the_job_says_so_and_only_then():
    on, off = request(privacy={"secure_aggregation": True}), request()
    stage = {"secure": "a" * 64}
    for asked, reasons in (
        (on, [("secure-session", "secure")]),
        (on.model_copy(update=stage), []),
        (on.model_copy(update=stage | {"kind": "secure-unmask"}), []),
        (on.model_copy(update={"kind": "secure-unmask"}), [("secure-session", "secure")]),
        (on.model_copy(update={"kind": "evaluate"}), []),
        (off.model_copy(update=stage), [("secure-session", "secure")]),
        (off.model_copy(update=stage | {"kind": "secure-keys"}), [("secure-session", "secure")]),
    ):
        assert found(asked) == reasons
    # The stages are part of the training.
    for kind in SECURE_KINDS:
        asked = on.model_copy(update=stage | {"kind": kind})
        assert found(asked, requests=["describe"]) == [("policy-request", "request")]
    few = on.model_copy(update=stage | {"kind": "secure-keys", "cohort": 3})
    assert found(few, minimum_cohort=4) == [("policy-cohort", "cohort")]
    assert found(few, require_secure_aggregation=True) == []


@pytest.mark.parametrize("missing", sorted(NAMED))
def test_whatever_is_not_named_is_refused(missing):
    named = {key: value for key, value in NAMED.items() if key != missing}
    said = about_request(SitePolicy.model_validate(named), request(), PARTY, TODAY)
    assert len(said) == 1


EXCHANGE = {
    "aggregate": {"rule": "creamfl"},
    "proxy": {"phantoms": 32},
}


@pytest.mark.parametrize(
    ("limits", "asked", "code", "field"),
    [
        ({"purpose": "  "}, request(), "policy-purpose", "purpose"),
        ({"expires": date(2026, 11, 20)}, request(), "policy-expired", "expires"),
        ({"coordinators": ["c" * 64]}, request(), "policy-coordinator", "coordinator"),
        ({"requests": ["describe"]}, request(), "policy-request", "request"),
        ({"base_sha256": ["c" * 64]}, request(), "policy-base", "model.base"),
        ({"rules": ["fedavg"]}, request(), "policy-rule", "aggregate.rule"),
        (
            {"personalization": ["none"]},
            request(),
            "policy-personalization",
            "personalize.method",
        ),
        ({"targets": ["attention"]}, request(), "policy-targets", "lora.targets"),
        ({}, request(lora={"targets": [".*"]}), "policy-targets", "lora.targets"),
        ({"max_rounds": 4}, request(), "policy-rounds", "rounds"),
        ({}, request(round_number=6), "policy-rounds", "round"),
        (
            {"max_steps": 7},
            request(train={"steps": 8}, personalize={"steps": 1}),
            "policy-steps",
            "train.steps",
        ),
        (
            {"max_epochs": 1},
            request(train={"steps": None, "epochs": 2.0}, personalize={"steps": 1}),
            "policy-steps",
            "train.epochs",
        ),
        (
            {"max_steps": 8},
            request(personalize={"steps": 9}),
            "policy-steps",
            "personalize.steps",
        ),
        (
            {"max_rank": 7},
            request(lora={"rank": 8}, personalize={"rank": 4}),
            "policy-rank",
            "lora.rank",
        ),
        ({"max_rank": 8}, request(personalize={"rank": 9}), "policy-rank", "personalize.rank"),
        ({}, request(proxy={"phantoms": 64}), "policy-proxy", "proxy"),
        (
            {"rules": ["any"], "personalization": ["any"]},
            request(**EXCHANGE),
            "policy-features",
            "aggregate.rule",
        ),
        ({"minimum_cohort": 6}, request(cohort=5), "policy-cohort", "cohort"),
        (
            {},
            request("describe", aggregate={"cohort": 2}),
            "policy-cohort",
            "aggregate.cohort",
        ),
        ({}, request("describe", data={"sites": ["a", "b"]}), "policy-cohort", "data.sites"),
        (
            {"require_differential_privacy": True},
            request(),
            "policy-differential-privacy",
            "privacy.differential_privacy",
        ),
        (
            {"require_differential_privacy": True},
            request(privacy=SITE_LEVEL),
            "policy-differential-privacy",
            "privacy.mode",
        ),
        (
            {"privacy": {"population": "p", "epsilon": 8.0, "delta": 1e-5}},
            request(privacy=SITE_LEVEL),
            "policy-differential-privacy",
            "privacy.mode",
        ),
        (
            {"require_secure_aggregation": True},
            request(),
            "policy-secure-aggregation",
            "privacy.secure_aggregation",
        ),
    ],
)
def test_each_limit_refuses_with_its_own_code_and_field(limits, asked, code, field):
    party = Party(KEY, 9)
    assert found(asked, party, **limits) == [(code, field)]


def test_every_offending_field_is_named_in_one_refusal():
    asked = request(
        round_number=5,
        cohort=2,
        base="c" * 64,
        rounds=5000,
        lora={"rank": 128, "targets": ["attention", "vision_model"]},
        train={"steps": 10**6},
        aggregate={"rule": "fedavg"},
        personalize={"method": "ditto", "steps": 10**5},
    )
    with pytest.raises(RefusedError) as caught:
        refuse(about_request(policy(), asked, Party("d" * 64, 1), TODAY))
    assert caught.value.reason == "policy-coordinator"
    assert caught.value.fields == {
        "policy-coordinator": ("coordinator",),
        "policy-base": ("model.base",),
        "policy-cohort": ("cohort", "roster"),
        "policy-rule": ("aggregate.rule",),
        "policy-personalization": ("personalize.method",),
        "policy-targets": ("lora.targets",),
        "policy-rounds": ("rounds",),
        "policy-steps": ("train.steps", "personalize.steps"),
        "policy-rank": ("lora.rank",),
    }
    assert "train.steps: 1e+06, the site allows 1000" in str(caught.value)


def test_any_has_to_be_written_down():
    assert found(request(base="c" * 64), base_sha256=["any"]) == []
    assert found(request(), Party(), coordinators=["any"]) == []
    assert found(request(), Party()) == [("policy-coordinator", "coordinator")]


def test_a_policy_counts_on_its_last_day_and_not_on_the_next():
    assert found(request(), today=date(2026, 12, 31)) == []
    assert found(request(), today=date(2027, 1, 1)) == [("policy-expired", "expires")]
    assert found(request(), today=date(9999, 1, 1), expires="never") == []


def test_a_coordinator_cannot_ask_more_sites_than_the_pinned_roster_has():
    """Whatever number it states."""
    assert found(request(cohort=99), Party(KEY, 2)) == [("policy-cohort", "roster")]


def test_a_round_that_does_not_say_how_many_it_asks_counts_as_one_site():
    assert found(request(cohort=0), Party(KEY)) == [("policy-cohort", "cohort")]
    assert found(request("evaluate", cohort=0), Party(KEY)) == []
    assert found(request(cohort=0), Party(KEY), minimum_cohort=1) == []


def test_methods_that_do_not_use_a_limit_are_not_held_to_it():
    own = {"method": "none", "rank": 64, "steps": 5000}
    assert found(request(personalize=own), personalization=["none"], max_rank=8) == []


def test_a_job_under_another_jobs_digest_is_refused():
    asked = request().model_copy(update={"job_sha256": "d" * 64})
    assert found(asked) == [("job-digest", "job_sha256")]


# --- the file


def test_a_policy_is_read_from_a_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        f'max_rounds = 3\nbase_sha256 = ["{BASE}"]\nmetrics = ["auroc"]\nexpires = 2027-01-31\n'
    )
    read = SitePolicy.load(path)
    assert (read.max_rounds, read.base_sha256, read.metrics) == (3, (BASE,), ("auroc",))
    assert read.expires == date(2027, 1, 31)
    assert (read.exact, read.data_changes, read.minimum_patients) == (False, "refuse", 100)


@pytest.mark.parametrize(
    "text",
    [
        "max_round = 3", "max_rounds = 0", 'metrics = ["f1"]', "max_rounds =", "exact = 7",
        'base_sha256 = ["bbb"]', 'coordinators = "any"', 'rules = ["fedavgg"]',
        'expires = "soon"', "max_epochs = nan",
    ],
)  # fmt: skip
def test_a_wrong_policy_file_is_an_error_of_one_line(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.toml: ") as caught:
        SitePolicy.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_policy_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such policy file"):
        SitePolicy.load(tmp_path / "policy.toml")


def test_a_policy_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        SitePolicy().max_rounds = 5


def test_a_changed_file_counts_at_the_next_look(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("max_rounds = 3\n")
    source = PolicyFile(path)
    first = source.current()
    assert source.current() is first, "not read again while it is the same"
    path.write_text("max_rounds = 4\n")
    later = datetime.now(UTC) + timedelta(seconds=2)
    os.utime(path, (later.timestamp(), later.timestamp()))
    assert (first.max_rounds, source.current().max_rounds) == (3, 4)


@pytest.mark.parametrize("broken", ["max_rounds = ", "exactly = true", None])
def test_a_policy_that_cannot_be_read_allows_nothing_until_it_can(tmp_path, caplog, broken):
    path = tmp_path / "policy.toml"
    path.write_text("max_rounds = 3\n")
    source = PolicyFile(path)
    assert source.current().max_rounds == 3
    path.unlink() if broken is None else path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(RefusedError) as caught:
                source.current()
            assert caught.value.reason == "policy-unreadable"
    assert caplog.text.count("everything is refused") == 1
    assert "policy.toml" in caplog.text
    path.write_text("max_rounds = 30\n")
    assert source.current().max_rounds == 30


def test_policies_that_say_something_else_have_another_digest():
    assert policy().digest() == policy().digest()
    assert policy().digest() != policy(max_rounds=9).digest()


def test_the_example_of_the_page_is_a_policy_and_the_page_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    example = SitePolicy.model_validate(tomllib.loads(page.split("```toml\n")[1].split("```")[0]))
    for key in NAMED:
        assert getattr(example, key), key
    codes = set(re.findall(r"`(policy-[a-z-]+|consent-[a-z]+|data-changed)`", page))
    assert codes >= {code for code in REFUSALS if code.startswith(("policy-", "consent-"))}
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z0-9_]+)`", rows)) == set(SitePolicy.model_fields)
