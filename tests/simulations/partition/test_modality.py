"""Kinds, missing sides and noisy pairs: how many, which, and what is left as it was."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulations.partition.modality import as_kind, kinds_of, with_missing
from simulations.partition.noise import with_noise

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def records(record_of):
    """10 training pairs, 4 validation pairs, 6 test pairs, of 10 patients."""
    splits = ["train"] * 10 + ["val"] * 4 + ["test"] * 6
    return [record_of(f"{s}{n // 2}", split=s, number=n) for n, s in enumerate(splits)]


def counts(records):
    train = [r for r in records if r.split == "train"]
    return (
        sum(bool(r.file_name and r.text) for r in train),
        sum(bool(r.file_name and not r.text) for r in train),
        sum(bool(r.text and not r.file_name) for r in train),
    )


def test_shares_of_sites_become_whole_sites():
    names = [f"site-{n}" for n in range(8)]
    kinds = kinds_of(names, {"paired": 0.5, "image": 0.25, "text": 0.25}, rng())
    assert sorted(kinds) == names
    assert sorted(kinds.values()) == ["image"] * 2 + ["paired"] * 4 + ["text"] * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("paired", (10, 0, 0)),
        ("image", (0, 10, 0)),
        ("text", (0, 0, 10)),
        ("unpaired", (0, 10, 10)),
    ],
)
def test_a_kind_holds_for_training_and_validation_and_leaves_the_test_whole(
    records, kind, expected
):
    kept = as_kind(records, kind)
    assert counts(kept) == expected
    assert [r for r in kept if r.split == "test"] == records[14:]
    assert any(r.file_name and r.text for r in kept if r.split == "val") == (kind == "paired")


def test_records_without_the_kind_s_modality_are_left_out(record_of):
    mixed = [record_of("a", text=""), record_of("b", file_name=""), record_of("c")]
    assert [r.patient for r in as_kind(mixed, "image")] == ["a", "c"]
    assert [r.patient for r in as_kind(mixed, "text")] == ["b", "c"]


def test_so_many_pairs_lose_a_side_and_none_both(records):
    # Of 14 pairs in training and validation: round(0.25 * 14) = 4 (3.5 to even) and round(7) = 7.
    kept = with_missing(records, 0.25, 0.5, rng())
    lost = [(bool(r.file_name), bool(r.text)) for r in kept if r.split != "test"]
    assert (lost.count((False, True)), lost.count((True, False))) == (4, 7)
    assert lost.count((False, False)) == 0
    assert kept[14:] == records[14:]
    assert with_missing(records, 0, 0, rng()) == records


@QUICK
@given(st.floats(0, 1), st.integers(0, 999), st.lists(st.integers(0, 5), min_size=0, max_size=30))
def test_a_noisy_pair_has_the_text_of_another_patient_of_its_split(record_of, rate, seed, patients):
    pairs = [record_of(f"p{p}", number=n) for n, p in enumerate(patients)]
    changed, noisy = with_noise(pairs, rate, rng(seed))
    assert len(noisy) <= round(rate * len(pairs))
    giver = {r.text: r.person for r in pairs}
    for place, (before, after) in enumerate(zip(pairs, changed, strict=True)):
        if place in noisy:
            assert giver[after.text] != before.person
        else:
            assert after == before
        assert (after.file_name, after.labels, after.split) == (
            before.file_name,
            before.labels,
            before.split,
        )
    assert sorted(r.text for r in changed) == sorted(r.text for r in pairs)


def test_the_rate_is_met_where_no_patient_has_most_pairs(records):
    changed, noisy = with_noise(records, 0.5, rng())
    assert sum(records[place].split == "train" for place in noisy) == 5
    assert sum(records[place].split == "val" for place in noisy) == 2
    assert changed[14:] == records[14:]
    for split in ("train", "val"):  # texts stay in their split
        assert {r.text for r in changed if r.split == split} == {
            r.text for r in records if r.split == split
        }


def test_one_patient_alone_has_nobody_to_exchange_with(record_of):
    alone = [record_of("p", number=n) for n in range(6)]
    assert with_noise(alone, 1.0, rng()) == (alone, set())
