"""Figure 10: gradient norms of both towers, and how far one runs ahead."""

import re

import pytest

from shared.page import assets
from shared.page.marks import log_scale
from shared.results import Results
from simulations.report import render
from simulations.report.readings import ordered
from simulations.report.towers import ahead, mean_lead, towers
from simulations.report.words import SERIES

Runs = dict[str, Results]


def change(results: Results, name: str, **values: object) -> Results:
    sites = {**results.sites, name: results.sites[name].model_copy(update=values)}
    return results.model_copy(update={"sites": sites})


def test_twice_and_half_cancel_out_by_round() -> None:
    leads = {"A": {1: 2.0, 2: 4.0}, "B": {1: 0.5, 3: 9.0}, "C": {}}
    assert mean_lead(leads) == pytest.approx({1: 1, 2: 4, 3: 9})


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (2.4, "image 2.4 times text"),
        (0.25, "text 4.0 times image"),
        (1.02, "both towers alike"),
        (1 / 1.02, "both towers alike"),
    ],
)
def test_the_tower_ahead_is_named(ratio: float, words: str) -> None:
    assert ahead(ratio) == words


def test_a_logarithmic_axis_by_hand() -> None:
    scale = log_scale(0.1, 10.0)
    assert scale.share(1.0) == pytest.approx(0.5)
    assert scale.ticks == (0.1, 1, 10)  # with 0.3 and 3 there would be five
    assert scale.label(0.1) == "0.1"
    assert scale.share(0.001) == 0
    alike = log_scale(1.0, 1.0)
    assert alike.high / alike.low > 2
    assert 1 in alike.ticks


def test_every_number_is_in_the_table(runs: Runs) -> None:
    results = change(
        runs["phantom"],
        "Aldern",
        gradient_norms={"image": [4.0, 0.0, 1.0], "text": [1.0, 0.0, 2.0]},
        discrepancy={"image": [4.0, 0.0, 0.5], "text": [0.25, 0.0, 2.0]},
    )
    shown = towers(results)
    mine = next(row for row in shown.rows if row.site == "Aldern")
    assert mine.cells[:4] == ("Image 1.4 times text", "4 / 1 (4)", "missing", "1 / 2 (0.5)")
    assert shown.columns == tuple(map(str, range(1, 21)))
    panel = next(p for p in shown.panels if p.head.full == "Aldern")
    assert panel.small == "image 1.4 times text"  # the geometric mean of 4 and 1/2
    assert "image tower 4 in round 1 and 1 in round 3" in panel.spoken
    assert shown.lead is not None
    assert shown.lead.count('t-site"') == 8  # every site, those without a line as well
    assert shown.lead.count('t-site dot"') == 1  # Aldern's rounds 1 and 3 have no neighbours


def test_a_site_with_one_tower_says_so(runs: Runs) -> None:
    shown = towers(runs["phantom"])
    small = {panel.head.full: panel.small for panel in shown.panels}
    assert (small["Fellgate"], small["Harrowby"]) == ("image tower only", "text tower only")
    row = next(row for row in shown.rows if row.site == "Harrowby")
    assert row.cells[0] == "Text tower only"
    assert "/" not in "".join(row.cells)


def test_nobody_trained_both_towers(runs: Runs) -> None:
    shown = towers(runs["text-only"])
    assert shown.lead is None
    assert "No site trained both towers" in render(runs["text-only"], {})


def test_a_run_without_rounds_has_no_figure_but_a_sentence(runs: Runs) -> None:
    failed = runs["failed"]
    empty = {
        n: s.model_copy(update={"gradient_norms": {}, "discrepancy": {}})
        for n, s in failed.sites.items()
    }
    shown = towers(failed.model_copy(update={"sites": empty}))
    assert shown.lead is None
    assert all(panel.drawing is None and panel.none for panel in shown.panels)
    assert all(row.none for row in shown.rows)


def test_a_round_alone_is_a_dot_and_not_an_invisible_line(runs: Runs) -> None:
    lead = towers(runs["one-round"]).lead
    assert lead is not None
    assert re.search(r'd="M1000 \d+h0" class="curve t-mean dot"', lead)
    assert "dot" not in str(towers(runs["phantom"]).lead)


def test_the_table_goes_when_the_page_has_no_room(runs: Runs) -> None:
    assert towers(runs["phantom"], table=False).rows == ()
    assert len(towers(runs["two-hundred"]).columns) <= 22
    assert [p.head.full for p in towers(runs["phantom"]).panels] == ordered(runs["phantom"])


def test_the_page_says_what_a_lead_means_and_what_to_do(runs: Runs) -> None:
    page = render(runs["phantom"], {})
    assert "A lead alone is no fault" in page
    assert "<code>train.balance</code> between 0.1 and 0.8" in page


def test_within_noise_is_hollow_in_every_colour() -> None:
    css = assets.load().css
    for series in SERIES:
        assert f".fill.quiet.s-{series}{{stroke:var(--{series})}}" in css
