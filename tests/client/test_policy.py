"""A site's policy says no with a code, before any record is opened."""

import pytest

from client.policy import SitePolicy, simulation_policy
from shared.config import parse_job
from shared.errors import ConfigError, RefusedError
from shared.messages import Request

BASE = "b" * 64


def request(kind="train", round_number=1, **job):
    config = parse_job({"name": "job", "rounds": 5, **job})
    return Request(
        kind=kind,
        run="run",
        round=round_number,
        base_sha256=BASE,
        job_sha256=config.digest(),
        job=config,
    )


def reason(policy, asked):
    with pytest.raises(RefusedError) as caught:
        policy.check(asked)
    return caught.value.reason


def test_the_default_policy_allows_an_ordinary_job():
    SitePolicy().check(request())
    simulation_policy().check(request())


def test_the_default_policy_allows_the_default_job():
    SitePolicy().check(request(rounds=10))


@pytest.mark.parametrize(
    ("limits", "asked", "code"),
    [
        ({"requests": ["describe"]}, request(), "policy-request"),
        ({"base_sha256": ["c" * 64]}, request(), "policy-base"),
        ({"max_rounds": 4}, request(), "policy-rounds"),
        ({}, request(round_number=6), "policy-rounds"),
        ({"max_steps": 7}, request(train={"steps": 8}, personalize={"steps": 1}), "policy-steps"),
        (
            {"max_epochs": 1},
            request(train={"steps": None, "epochs": 2.0}, personalize={"steps": 1}),
            "policy-steps",
        ),
        ({"max_steps": 8}, request(personalize={"steps": 9}), "policy-steps"),
        ({"max_rank": 7}, request(lora={"rank": 8}), "policy-rank"),
        ({"max_rank": 8}, request(personalize={"rank": 9}), "policy-rank"),
        (
            {"require_differential_privacy": True},
            request(),
            "policy-differential-privacy",
        ),
        ({"require_secure_aggregation": True}, request(), "policy-secure-aggregation"),
    ],
)
def test_each_limit_refuses_with_its_own_code(limits, asked, code):
    assert reason(SitePolicy.model_validate(limits), asked) == code


def test_an_allowed_base_passes():
    SitePolicy(base_sha256=(BASE,)).check(request())


def test_a_job_under_another_jobs_digest_is_refused():
    asked = request().model_copy(update={"job_sha256": "d" * 64})
    assert reason(SitePolicy(), asked) == "job-digest"


def test_a_policy_is_read_from_a_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(f'max_rounds = 3\nbase_sha256 = ["{BASE}"]\nmetrics = ["auroc"]\n')
    policy = SitePolicy.load(path)
    assert (policy.max_rounds, policy.base_sha256, policy.metrics) == (3, (BASE,), ("auroc",))
    assert not policy.exact


@pytest.mark.parametrize(
    "text", ["max_round = 3", "max_rounds = 0", 'metrics = ["f1"]', "max_rounds =", "exact = 7"]
)
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
