"""Dividing the public set: whole patients, the same every time, and never too few."""

import numpy as np
import pytest

from server.proxy.pairs import ProxyPairs
from shared.errors import DataError


def pairs_of(count: int, texts: int = 99, per_patient: int = 1) -> ProxyPairs:
    return ProxyPairs(
        np.zeros((count, 4, 4, 1), np.uint8),
        tuple(f"text {number % texts}" for number in range(count)),
        np.arange(count, dtype=np.int64) // per_patient,
    )


def test_every_pair_is_in_one_part_and_patients_stay_whole() -> None:
    pairs = pairs_of(60, per_patient=3)
    train, held = pairs.divided(0.25, seed=1)
    assert sorted([*train, *held]) == list(range(60))
    assert len(held) == 15
    assert not set(pairs.patients[train]) & set(pairs.patients[held])


def test_the_seed_alone_decides() -> None:
    pairs = pairs_of(60)
    assert np.array_equal(pairs.divided(0.3, 1)[1], pairs.divided(0.3, 1)[1])
    assert not np.array_equal(pairs.divided(0.3, 1)[1], pairs.divided(0.3, 2)[1])


@pytest.mark.parametrize(("count", "purpose"), [(16, "validate on"), (9, "distil on")])
def test_too_few_pairs_say_what_to_do(count: int, purpose: str) -> None:
    share = 0.25 if purpose == "validate on" else 0.9
    with pytest.raises(DataError, match=f"to {purpose}, expected at least 8; add pairs, or"):
        pairs_of(count).divided(share, 1)


def test_pairs_that_cannot_be_told_apart() -> None:
    with pytest.raises(DataError, match="have the same text"):
        pairs_of(60, texts=1).divided(0.25, 1)


def test_the_digest_has_pictures_and_texts() -> None:
    one, other = pairs_of(20), pairs_of(20)
    assert one.sha256() == other.sha256()
    other.pixels[3, 0, 0, 0] = 1
    assert one.sha256() != other.sha256() != pairs_of(20, texts=3).sha256()
