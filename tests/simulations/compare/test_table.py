"""The table's numbers, on scores that can be checked by hand."""

import math

import pytest

from simulations.compare.choice import Choice
from simulations.compare.methods import Method
from simulations.compare.scores import Scores
from simulations.compare.table import cell, difference, make_rows
from simulations.compare.words import sentences

T1, T2 = 12.706205, 4.302653
"""Student's t at 0.975 for 1 and 2 degrees of freedom."""


def scores(*levels: float, base: float = 0.5, **more) -> Scores:
    """Sites a, b, ... with these main metrics."""
    names = "abcdef"[: len(levels)]
    own = {
        n: {"auroc": v, "i2t_r5": v / 2, "t2i_r5": v / 4}
        for n, v in zip(names, levels, strict=True)
    }
    return Scores(
        job_sha256="x", own=own, base={n: {"auroc": base} for n in names},
        others={n: v - 0.1 for n, v in zip(names, levels, strict=True)}, **more,
    )  # fmt: skip


@pytest.fixture
def table():
    """Two methods, three seeds; the second is 0.02, 0.03, 0.04 ahead. Local is far behind."""
    found = {}
    for seed, (first, ahead) in enumerate(((0.70, 0.02), (0.72, 0.03), (0.71, 0.04)), start=1):
        found["fedavg", seed] = scores(first - 0.1, first + 0.1, relative_error=0.5, bytes_up=10)
        found["ffa+duet", seed] = scores(first + ahead, first + ahead, relative_error=0.0)
        found["local", seed] = scores(0.4, 0.4)
    choices = {"fedavg": Choice(0.1, ()), "ffa+duet": Choice(0.2, ()), "local": Choice(0.1, ())}
    choices["centralised"] = Choice(None, (), "diverged at every rate (0.1, 0.2)")
    methods = (Method("fedavg"), Method("ffa", "duet"))
    rows, best = make_rows(methods, choices, found, (1, 2, 3), "auroc")
    return {row.name: row for row in rows}, best


def test_means_and_intervals_over_seeds(table):
    rows, _ = table
    own = rows["fedavg"].cells["own"]
    half = T2 * 0.01 / math.sqrt(3)
    assert (own.value, own.low, own.high) == pytest.approx((0.71, 0.71 - half, 0.71 + half))
    assert own.by_seed == pytest.approx([0.70, 0.72, 0.71])
    assert rows["fedavg"].cells["worst"].value == pytest.approx(0.61)
    assert rows["fedavg"].cells["others"].value == pytest.approx(0.61)
    assert rows["fedavg"].cells["i2t_r5"].value == pytest.approx(0.355)
    assert rows["fedavg"].cells["t2i_r5"].value == pytest.approx(0.1775)
    assert rows["fedavg"].cells["error"].value == 0.5
    assert rows["ffa+duet"].cells["error"].value == 0.0
    assert rows["fedavg"].cells["bytes_up"].value == 10
    assert "bytes_up" not in rows["local"].cells


def test_differences_are_paired_by_seed(table):
    rows, best = table
    assert best == "ffa+duet"
    found = rows["fedavg"].difference
    half = T2 * 0.01 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx(
        (-0.03, -0.03 - half, -0.03 + half)
    )
    assert rows["fedavg"].word == "worse"
    assert rows["ffa+duet"].difference is None


def test_the_base_is_a_row_that_costs_nothing(table):
    rows, _ = table
    base = rows["base"]
    assert (base.rate, base.cells["own"].value, base.cells["others"].value) == (None, 0.5, 0.5)


def test_words_say_the_best_what_it_beats_and_whether_federating_pays(table):
    rows, best = table
    says = sentences(list(rows.values()), best, "auroc", 3)
    assert says[0].startswith("ffa+duet has the best own test: AUROC 0.740 (")
    assert "Worse: fedavg." in says
    assert "Local-only is worse than ffa+duet: federating pays here." in says
    assert says[-1] == "centralised has no numbers: diverged at every rate (0.1, 0.2)."


def test_local_that_wins_is_said():
    found = {("fedavg", s): scores(0.6 + s / 100) for s in (1, 2, 3)}
    found |= {("local", s): scores(0.8 + s / 100) for s in (1, 2, 3)}
    rows, best = make_rows([Method("fedavg")], {}, found, (1, 2, 3), "auroc")
    assert best == "fedavg"  # references are no method to choose
    assert any("federating does not pay here" in s for s in sentences(rows, best, "auroc", 3))


def test_what_cannot_be_told_apart_is_said():
    found = {("fedavg", s): scores(0.6 + s / 100) for s in (1, 2)}
    found |= {("ffa", s): scores(0.6 + 2 * s / 100) for s in (1, 2)}
    rows, best = make_rows([Method("fedavg"), Method("ffa")], {}, found, (1, 2), "auroc")
    assert best == "ffa"
    assert rows[0].difference.high == pytest.approx(-0.015 + T1 * 0.005)
    says = sentences(rows, best, "auroc", 2)
    assert "Not distinguishable from it over these seeds: fedavg." in says


def test_one_seed_has_no_interval_and_no_word():
    found = {("fedavg", 1): scores(0.6), ("ffa", 1): scores(0.7)}
    rows, best = make_rows([Method("fedavg"), Method("ffa")], {}, found, (1,), "auroc")
    assert (rows[0].cells["own"].low, rows[0].cells["own"].high) == (None, None)
    assert rows[0].difference.value == pytest.approx(-0.1)
    assert rows[0].word is None
    assert "One seed has no interval" in sentences(rows, best, "auroc", 1)[1]


def test_a_seed_that_failed_is_left_out_of_pairs_and_noted():
    found = difference([0.5, None, 0.7], [0.4, 0.1, 0.4])
    assert found.by_seed == [pytest.approx(0.1), None, pytest.approx(0.3)]
    assert cell([None, None]) is None
    found = {("fedavg", 1): scores(0.6), ("fedavg", 2): Scores(job_sha256="x", reason="quorum")}
    rows, _ = make_rows([Method("fedavg")], {}, found, (1, 2), "auroc")
    assert rows[0].notes == ["seed 2: quorum"]
    assert rows[0].cells["own"].by_seed == [pytest.approx(0.6), None]


def test_of_errors_the_lowest_is_best_and_the_highest_worst():
    def run(*levels):
        own = {n: {"ece": v} for n, v in zip("ab", levels, strict=True)}
        return Scores(job_sha256="x", own=own)

    found = {("fedavg", 1): run(0.1, 0.3), ("ffa", 1): run(0.2, 0.4)}
    rows, best = make_rows([Method("fedavg"), Method("ffa")], {}, found, (1,), "ece")
    assert best == "fedavg"
    assert rows[0].cells["worst"].value == 0.3


def test_a_comparison_without_any_result_says_so():
    rows, best = make_rows([Method("fedavg")], {"fedavg": Choice(None, (), "n")}, {}, (1,), "auroc")
    assert best is None
    assert sentences(rows, best, "auroc", 1) == ["No method reached a result; see the notes."]
