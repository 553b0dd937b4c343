"""How many sites of a session must answer: what the protocol needs, and what the noise needs."""

import pytest

from server.secure_session import threshold_of
from shared.config import JobConfig

BOTH, IMAGE, TEXT = {"image": 1, "text": 1}, {"image": 1}, {"text": 1}


def job_of(shares):
    privacy = {"secure_aggregation": True}
    if shares:
        privacy |= {
            "differential_privacy": True, "mode": "distributed", "noise_shares": shares,
            "noise_multiplier": 1.0,
        }  # fmt: skip
    return JobConfig.model_validate(
        {"name": "sums", "privacy": privacy, "proxy": {"phantoms": 64} if shares else {}}
    )


def cohort(*towers):
    return {f"site-{number}": each for number, each in enumerate(towers)}


@pytest.mark.parametrize(
    ("shares", "sites", "quorum", "wanted"),
    [
        (0, cohort(*[BOTH] * 7), 3, 5),  # more than two thirds
        (0, cohort(*[BOTH] * 7), 6, 6),
        (3, cohort(*[BOTH] * 7), 3, 5),  # three, one that is curious: fewer than answer anyway
        (5, cohort(*[BOTH] * 7), 3, 6),
        (7, cohort(*[BOTH] * 7), 3, 8),  # more than there are: no session
        # Of those that answer all two that lack a tower may be there.
        (3, cohort(*[BOTH] * 5, IMAGE, IMAGE), 3, 6),
        (3, cohort(*[BOTH] * 3, IMAGE, IMAGE, TEXT, TEXT), 3, 6),
        (2, cohort(*[IMAGE] * 4), 3, 3),  # a tower that nobody trains asks for nothing
    ],
)
def test_so_many_must_answer_that_enough_are_left_in_every_tower(shares, sites, quorum, wanted):
    assert threshold_of(job_of(shares), sites, quorum) == wanted
