"""Every row of the refusal list, one mistake at a time."""

import re
from dataclasses import replace

import pytest

from shared.privacy.objections import _RULES, PrivacyPlan, objections

SOUND = PrivacyPlan()
TOGETHER = PrivacyPlan(
    mode="distributed", secure_aggregation=True, sites=6, missing=2, dropout_allowed=2
)
WHOLE_SITES = PrivacyPlan(
    mode="site-level",
    unit="site",
    clipped="site",
    sampling="all",
    rate=1.0,
    patients=50,
    delta=1e-3,
)
ROWS = [
    ("unit-record", {"unit": "record"}, "one record"),
    ("patient-column", {"patient_column": False}, "whose they are"),
    ("patient-blank", {"blank_patients": 3}, "3 records leave the patient column blank"),
    ("few-patients", {"patients": 99}, "100"),
    ("unit-site", {"unit": "site"}, "claimed for the other"),
    ("unit-site", {"mode": "site-level"}, "claimed for the other"),
    ("delta", {"delta": 1e-3}, "use 0.0001 or less"),
    ("delta", {"delta": 0.0}, "delta 0"),
    ("delta", {"delta": float("nan")}, "delta nan"),
    ("no-clipping", {"clipped": "nothing"}, "nothing bounds"),
    ("no-clipping", {"clip": 0.0}, "nothing bounds"),
    ("no-clipping", {"clip": float("inf")}, "nothing bounds"),
    ("no-noise", {"noise": 0.0}, "clipping without noise"),
    ("no-noise", {"noise": float("nan")}, "clipping without noise"),
    ("noise-seeded", {"seeded_noise": True}, "seed"),
    ("in-batch", {"objective": "in-batch"}, "same batch"),
    ("clipped-record", {"clipped": "record"}, "each patient's records"),
    (
        "sensitivity",
        {"clipped": "group", "objective": "in-batch", "grouping": "own-draw"},
        "groups or batches",
    ),
    (
        "grouped-in-order",
        {"clipped": "group", "sensitivity": 2.0, "grouping": "in-order"},
        "drawn by itself",
    ),
    ("grouped-in-order", {"clipped": "group", "sensitivity": 2.0}, "drawn by itself"),
    ("sensitivity", {"clipped": "batch", "objective": "in-batch"}, "groups or batches"),
    ("sensitivity", {"adjacency": "replace-one"}, "replaced by another"),
    ("clip-follows-data", {"clip_follows_data": True}, "fixed norm"),
    ("temperature", {"temperature_trained": True}, "temperature"),
    ("batch-statistics", {"batch_statistics": True}, "batch normalization"),
    ("bank-own-records", {"bank": "own-records"}, "site's own records"),
    ("teacher-personal", {"teacher_has_personal": True}, "personal adapter"),
    ("shuffled", {"sampling": "shuffled"}, "ten times too small"),
    ("shuffled", {"sampling": "fixed-size"}, "ten times too small"),
    ("rate", {"sampling": "all"}, "not the one in use"),
    ("rate", {"rate": 0.0}, "not the one in use"),
    ("divides-by-batch", {"divides_by_batch": True}, "number expected"),
    ("chosen-on-private", {"chosen_on_private": True}, "such look"),
    ("exact-weights", {"exact_weights": True}, "rounded weights"),
    ("trained-before-without", {"trained_before_without": True}, "cannot take back"),
]
TOGETHER_ROWS = [
    ("no-secure-aggregation", {"secure_aggregation": False}),
    ("distributed-steps", {"clipped": "batch", "sensitivity": 2.0}),
    ("missing-sites", {"dropout_allowed": 3}),
    ("no-noise-left", {"missing": 6, "dropout_allowed": 6}),
    ("in-batch", {"objective": "in-batch"}),
]


def codes(plan):
    return [objection.code for objection in objections(plan)]


@pytest.mark.parametrize("plan", [SOUND, TOGETHER, WHOLE_SITES])
def test_sound_plans_have_no_objections(plan):
    assert codes(plan) == []


@pytest.mark.parametrize(("code", "mistake", "words"), ROWS)
def test_each_mistake_is_refused_by_its_own_rule(code, mistake, words):
    found = objections(replace(SOUND, **mistake))
    assert [objection.code for objection in found] == [code]
    assert re.search(words, found[0].why)


@pytest.mark.parametrize(("code", "mistake"), TOGETHER_ROWS)
def test_each_mistake_with_distributed_noise_is_refused(code, mistake):
    assert codes(replace(TOGETHER, **mistake)) == [code]


def test_what_makes_a_mistake_right():
    """Twice the norm for groups and replacement, and a temperature inside the clipped vector."""
    groups = {"objective": "in-batch", "clipped": "group", "sensitivity": 2.0}
    groups["grouping"] = "own-draw"
    assert codes(replace(SOUND, **groups)) == []
    assert codes(replace(SOUND, adjacency="replace-one", sensitivity=2.0)) == []
    assert codes(replace(SOUND, temperature_trained=True, temperature_clipped=True)) == []
    assert codes(replace(SOUND, sampling="all", rate=1.0)) == []
    assert codes(replace(SOUND, bank="public")) == []


def test_all_mistakes_are_named_at_once():
    assert codes(replace(SOUND, noise=0.0, clipped="nothing", delta=0.5)) == [
        "delta",
        "no-clipping",
        "no-noise",
    ]


def test_every_rule_has_a_row():
    tested = {row[0] for row in (*ROWS, *TOGETHER_ROWS)}
    assert tested == {code for code, _, _ in _RULES}
