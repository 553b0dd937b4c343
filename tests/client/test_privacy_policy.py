"""A site fixes what is spent at most; a job can only ask for more privacy."""

import pytest
from pydantic import ValidationError

from client.privacy_policy import Asked, PrivacyPolicy, check_plan, terms
from shared.errors import RefusedError
from shared.privacy.objections import PrivacyPlan

POLICY = PrivacyPolicy(population="chest", epsilon=8, delta=1e-5, least_noise=0.7, largest_clip=0.5)


def test_a_job_that_asks_for_nothing_gets_the_sites_own_terms():
    found = terms(POLICY, Asked())
    assert (found.epsilon, found.run_epsilon, found.delta) == (8, 8, 1e-5)
    assert (found.clip, found.noise) == (0.5, 0.7)


def test_a_job_may_ask_for_more_privacy():
    found = terms(POLICY, Asked(epsilon=2, delta=1e-6, clip=0.1, noise=1.5))
    assert (found.epsilon, found.run_epsilon, found.delta) == (8, 2, 1e-6)
    assert (found.clip, found.noise) == (0.1, 1.5)


def test_a_job_may_not_ask_for_less():
    found = terms(POLICY, Asked(epsilon=100, delta=0.1, clip=10, noise=0.1))
    assert found == terms(POLICY, Asked())


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0}, {"epsilon": float("inf")}, {"delta": 0}, {"delta": 1}, {"delta": 1e-13},
        {"least_noise": 0.1}, {"largest_clip": 0}, {"population": ""},
        {"population": "a\nb"}, {"epsilonn": 3},
    ],
)  # fmt: skip
def test_refuses_limits_that_make_no_sense(change):
    with pytest.raises(ValidationError):
        PrivacyPolicy(**{**POLICY.model_dump(), **change})


def test_an_unsound_plan_is_refused_with_every_reason():
    check_plan(PrivacyPlan())
    with pytest.raises(RefusedError) as caught:
        check_plan(PrivacyPlan(noise=0, objective="in-batch"))
    assert caught.value.reason == "privacy-plan"
    assert "clipping without noise" in str(caught.value)
    assert "same batch" in str(caught.value)
