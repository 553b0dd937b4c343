"""What the report says, in numbers a reader can check by hand; no browser."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.errors import RunDirectoryError
from shared.page import assets, tokens
from shared.page.marks import nice_scale
from shared.page.numbers import (
    duration,
    interval,
    listing,
    number,
    plural,
    power,
    ranges,
    reading,
    short,
    size,
    thousands,
)
from shared.privacy.statement import NOT_COVERED_OF_SITES, Claim, claimed, trust_of
from shared.results import (
    CalibrationBin,
    DatasetOrigin,
    Estimate,
    Metric,
    ParticipationCell,
    Results,
    SiteResult,
    SplitCounts,
)
from simulations.report import MOST_BYTES, render, write_report
from simulations.report.answers import answers, average
from simulations.report.context import flat, measure, record
from simulations.report.disclosure import coarse, embedded, exact, released
from simulations.report.flow import boxes, patient_flow, site_flow
from simulations.report.limits import LEVELS, RULES, limits
from simulations.report.participation import bins, events, rounds_rows
from simulations.report.pictures import encode_picture
from simulations.report.pooling import pool
from simulations.report.readings import main_comparison, ordered, read
from simulations.report.stories import story
from simulations.report.verdict import pill, verdict

Runs = dict[str, Results]
MISSING = ParticipationCell(state="missing", reason="deadline")


def row(value: float, low: float, high: float, n: int = 500) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=n)


def with_gains(results: Results, gains: list[tuple[float, float, float]]) -> Results:
    """Give the sites of a run these differences to training alone, in page order."""
    sites = dict(results.sites)
    for name, gain in zip(ordered(results), gains, strict=True):
        old = sites[name]
        changed = {**old.differences, "personal_minus_local": {"auroc": row(*gain)}}
        sites[name] = old.model_copy(update={"differences": changed})
    return results.model_copy(update={"sites": sites})


def change(results: Results, name: str, **values: object) -> Results:
    sites = {**results.sites, name: results.sites[name].model_copy(update=values)}
    return results.model_copy(update={"sites": sites})


def lose(results: Results, name: str, *rounds: int) -> Results:
    cells = list(results.sites[name].participation)
    for r in rounds:
        cells[r - 1] = MISSING
    return change(results, name, participation=cells)


# --- numbers and words -------------------------------------------------------------------


def test_numbers_have_true_signs_and_units() -> None:
    assert number(-0.0681, 3) == "\u22120.068"
    assert number(0.068, 3, signed=True) == "+0.068"
    assert number(-0.0001, 3) == "0.000"
    assert thousands(46210) == "46\u202f210"
    assert (size(344e6), size(1.31e6), size(999_950), size(12)) == (
        "344 MB", "1.3 MB", "1.0 MB", "12 bytes",
    )  # fmt: skip
    assert (duration(20820), duration(200), duration(60), duration(0.44)) == (
        "5 h 47 min", "3 min 20 s", "1 min", "0.4 s",
    )  # fmt: skip
    assert power(3.2e-7) == "3.2 \u00d7 10\u207b\u2077"
    assert ranges([1, 2, 3, 7, 9, 10]) == "1 to 3, 7, 9, 10"
    assert listing(["A", "B", "C", "D", "E"], 3) == "A, B and 3 more"
    assert (plural(1, "site"), plural(3, "site")) == ("1 site", "3 sites")
    assert len(short("x" * 40)) == 24


def test_the_last_digit_is_no_finer_than_a_tenth_of_the_half_width() -> None:
    assert interval(row(0.068, 0.060, 0.076), signed=True) == "+0.068 (0.060 to 0.076)"
    assert interval(row(0.041, -0.016, 0.1), signed=True) == "+0.04 (\u22120.02 to 0.10)"
    assert interval(row(0.12, -0.2, 0.4), signed=True) == "+0.1 (\u22120.2 to 0.4)"
    assert interval(row(0.771, 0.69, 0.85), 2) == "0.77 (0.69 to 0.85)"


def test_an_end_that_is_not_zero_is_not_printed_as_zero() -> None:
    assert interval(row(0.02, 0.002, 0.042), signed=True) == "+0.020 (0.002 to 0.042)"


@pytest.mark.parametrize(
    ("gain", "margin", "lower", "word"),
    [
        ((0.05, 0.01, 0.09), 0.0, False, "better"),
        ((-0.05, -0.09, -0.01), 0.0, False, "worse"),
        ((-0.05, -0.09, -0.01), 0.0, True, "better"),
        ((0.05, 0.0, 0.09), 0.0, False, "within noise"),
        ((0.05, 0.01, 0.09), 0.06, False, "within noise"),
        ((0.0, 0.0, 0.0), 0.0, False, "within noise"),
    ],
)
def test_a_word_needs_an_interval_clear_of_zero_and_of_the_margin(
    gain: tuple[float, float, float], margin: float, lower: bool, word: str
) -> None:
    assert reading(row(*gain), margin=margin, lower_is_better=lower) == word


def test_an_axis_has_round_ticks_inside_its_range() -> None:
    scale = nice_scale(-0.02, 0.12, signed=True)
    assert scale.ticks == (0.0, 0.05, 0.1)
    assert [scale.label(t) for t in scale.ticks] == ["0.00", "+0.05", "+0.10"]
    assert nice_scale(0.5, 0.93, floor=0.5, ceiling=1.0).low == 0.5
    assert nice_scale(3.0, 3.0).high > 3.0


def test_both_themes_name_the_same_colours() -> None:
    assert tokens.LIGHT.keys() == tokens.DARK.keys()
    used = set(re.findall(r"var\(--([\w-]+)\)", assets.load().css))
    assert used <= tokens.LIGHT.keys()


# --- pooling -----------------------------------------------------------------------------


def test_pooling_matches_a_calculation_by_hand() -> None:
    """Values 1, 2, 3, 4, 5 with standard error 1: weights 1, Q = 10, C = 5 - 5/5 = 4.

    tau2 = (10 - 4) / 4 = 1.5, weights 1/2.5, mean 3, q = 0.4 * 10 / 4 = 1,
    se = sqrt(1 / 2) = 0.70711, t(4) = 2.77645, t(3) = 3.18245,
    prediction 3.18245 * sqrt(1.5 + 0.5) = 4.50066.
    """
    z = 1.959963984540054
    pooled = pool([row(v, v - z, v + z) for v in (1.0, 2.0, 3.0, 4.0, 5.0)])
    assert pooled is not None
    assert pooled.value == pytest.approx(3.0)
    assert pooled.between == pytest.approx(1.5**0.5)
    assert pooled.high - pooled.value == pytest.approx(2.77645 * 0.5**0.5, abs=1e-4)
    assert pooled.new is not None
    assert pooled.new[1] - pooled.value == pytest.approx(4.50066, abs=1e-4)


def test_sites_that_agree_do_not_give_an_interval_of_no_width() -> None:
    pooled = pool([row(0.05, -0.15, 0.25)] * 3)
    assert pooled is not None
    assert pooled.low < 0 < pooled.high


def test_few_sites_have_no_mean_and_no_prediction() -> None:
    sites = [row(0.1 * k, 0.1 * k - 0.1, 0.1 * k + 0.1) for k in range(5)]
    assert pool(sites[:2]) is None
    three = pool(sites[:3])
    assert three is not None
    assert three.new is None
    five = pool(sites)
    assert five is not None
    assert five.new is not None


def test_models_that_are_one_and_the_same_do_not_outweigh_the_others() -> None:
    pooled = pool([row(0.0, 0.0, 0.0), row(0.1, 0.0, 0.2), row(0.1, 0.0, 0.2)])
    assert pooled is not None
    assert pooled.value == pytest.approx(2 / 30)
    same = pool([row(0.0, 0.0, 0.0)] * 3)
    assert same is not None
    assert (same.value, average(same)) == (0.0, "No measurable difference on average.")


# --- verdict, status, answers ------------------------------------------------------------

UP, NONE, DOWN = (0.05, 0.01, 0.09), (0.01, -0.03, 0.05), (-0.05, -0.09, -0.01)
CASES = [
    ([UP, UP, UP, NONE, NONE], "Joining helped 3 of the 5 sites that could be measured. "
     "At 2 the difference is within noise; at none was it worse."),
    ([UP] * 5, "Joining helped 5 of the 5 sites that could be measured. At none was it worse."),
    ([NONE] * 5, "Joining made no measurable difference at any of 5 sites."),
    ([UP, DOWN, NONE, UP, UP], "Joining was worse at b; it helped 3 of the 5 sites that could be "
     "measured. At 1 the difference is within noise."),
    ([DOWN, DOWN, DOWN, DOWN, UP], "Joining was worse at a, b and 2 more; it helped 1 of the 5 "
     "sites that could be measured."),
    ([DOWN, NONE, NONE, NONE, NONE], "Joining was worse at a; it helped none of the 5 sites that "
     "could be measured. At 4 the difference is within noise."),
]  # fmt: skip


@pytest.mark.parametrize(("gains", "sentence"), CASES)
def test_verdict(runs: Runs, gains: list[tuple[float, float, float]], sentence: str) -> None:
    assert verdict(with_gains(runs["clean"], gains)) == sentence


def test_verdict_of_one_site(runs: Runs) -> None:
    assert verdict(with_gains(runs["one"], [UP])) == (
        "Joining helped the only site that could be measured."
    )
    assert verdict(with_gains(runs["one"], [NONE])) == (
        "Joining made no measurable difference at the only site measured."
    )
    assert verdict(with_gains(runs["one"], [DOWN])) == (
        "Joining was worse at Aldern; no other site could be measured."
    )


def test_verdict_when_nothing_was_measured(runs: Runs) -> None:
    assert verdict(runs["text-only"]) == (
        "The run finished; nothing could be measured, because every site says: "
        "no images at this site."
    )
    assert verdict(runs["failed"]) == (
        "The run failed in round 1; nothing could be measured, because the loss is not finite "
        "at Aldern."
    )


def test_without_a_local_baseline_the_sentence_names_the_comparison(runs: Runs) -> None:
    base = runs["clean"]
    sites = {
        name: site.model_copy(
            update={"differences": {"shared_minus_base": site.differences["shared_minus_base"]}}
        )
        for name, site in base.sites.items()
    }
    changed = base.model_copy(update={"sites": sites})
    assert main_comparison(changed) == "shared_minus_base"
    assert verdict(changed).startswith("Over the untouched encoder, the shared adapter helped 5")


def test_a_site_with_few_patients_has_a_wide_interval_and_its_word(runs: Runs) -> None:
    rows = {r.site: r for r in read(runs["real"], "personal_minus_local").rows}
    assert rows["izmir"].word == "within noise"
    assert rows["hannover"].why == "no labels at this site"


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ({}, "Finished with every site"),
        ({"a": (20,)}, "Finished without a in the last round"),
        (
            {"a": (20,), "b": (20,), "c": (3, 20)},
            "Finished without a and 2 more sites in the last round",
        ),
        ({"a": (3, 4), "b": (5,)}, "Finished, 3 contributions missing"),
    ],
)  # fmt: skip
def test_only_a_run_with_every_contribution_is_green(
    runs: Runs, lost: dict[str, tuple[int, ...]], words: str
) -> None:
    results = runs["clean"]
    for name, rounds in lost.items():
        results = lose(results, name, *rounds)
    assert pill(results).words == words
    assert pill(results).tone == ("warn" if lost else "good")


def test_red_pills(runs: Runs) -> None:
    assert pill(runs["failed"]).words == "Failed in round 1"
    stopped = runs["clean"].model_copy(update={"status": "stopped", "rounds": 12})
    assert (pill(stopped).words, pill(stopped).tone) == ("Stopped after round 12", "bad")
    unclear = runs["clean"].model_copy(update={"status": "finished-incomplete"})
    assert pill(unclear).tone == "warn"


def test_six_answers(runs: Runs) -> None:
    found = answers(runs["lossy"])
    assert [a.question for a in found] == [
        "Did it work?", "For whom?", "At what privacy?", "At what cost?", "Who took part?",
        "What to distrust?",
    ]  # fmt: skip
    assert found[0].bold == "Yes, on average."
    assert found[1].bold == "5 better, 2 within noise, 0 worse, 1 not measured"
    assert found[1].detail == (
        "Lowest personal: Corvelle, AUROC 0.77 (0.69 to 0.85), on only 100 test patients."
    )
    assert found[2].bold == "No differential privacy: no claim"
    assert found[4].bold == "8 sites, 155 of 158 contributions asked for"
    assert found[4].detail == (
        "3 came late and were waited for. Missing: Dunmere in rounds 14 and 20. "
        "Refused: Garnock in round 9."
    )


def test_average_words(runs: Runs) -> None:
    for gain, word in ((UP, "Yes, on average."), (DOWN, "No: worse on average.")):
        assert answers(with_gains(runs["clean"], [gain] * 5))[0].bold == word
    assert answers(runs["one"])[0].bold == "Too few sites for an average."


def test_the_order_is_never_by_score(runs: Runs) -> None:
    assert ordered(runs["phantom"]) == [
        "Aldern", "Dunmere", "Brackwater", "Corvelle", "Estrin", "Fellgate", "Garnock", "Harrowby",
    ]  # fmt: skip


def test_site_stories_have_their_order_and_their_actions(runs: Runs) -> None:
    card = story(runs["lossy"], "Dunmere")
    assert card.words == "Joining helped. Use the personal adapter, and repeat the last round."
    assert [line.split(":")[0] for line in card.lines] == [
        "Personal against training alone", "Personal against shared",
        "Calibration error 0.06 (0.05 to 0.07).", "Took part in 18 of 20 rounds asked", "Privacy",
    ]  # fmt: skip
    garnock = story(runs["lossy"], "Garnock").words
    assert garnock.endswith("Recalibrate before any threshold is chosen.")
    assert "100 test patients are too few" in story(runs["lossy"], "Corvelle").words
    assert "could not be measured: no images" in story(runs["lossy"], "Harrowby").words


def test_chance_of_retrieval_depends_on_the_choices(runs: Runs) -> None:
    assert "chance is about 0.12 to 1.00, by the number of choices" in measure(runs["real"])
    assert "0.5 is chance" in measure(runs["phantom"]) or "0.5 is chance" in measure(runs["clean"])


# --- limits ------------------------------------------------------------------------------

ALWAYS = {"no_differential_privacy", "no_rehearsal", "number_of_intervals"}


def fired(results: Results) -> set[str]:
    return {rule.__name__ for rule in RULES if rule(results) is not None}


def test_a_clean_run_fires_only_what_no_run_can_avoid(runs: Runs) -> None:
    assert fired(runs["clean"]) == ALWAYS


def _gain(site: SiteResult, key: str, estimate: Estimate) -> dict[str, object]:
    return {"differences": {**site.differences, key: {"auroc": estimate}}}


def _small_test(site: SiteResult) -> dict[str, object]:
    small = SplitCounts(images=150, texts=150, pairs=150, patients=149)
    return {
        "splits": {"train": small, "val": small.model_copy(update={"patients": 70}), "test": small}
    }


def _metrics(site: SiteResult, metric: Metric, value: float) -> dict[str, object]:
    rows = {**site.metrics["personal"], metric: row(value, value, value)}
    return {"metrics": {**site.metrics, "personal": rows}}


def test_a_page_says_who_decided_which_adapter_is_in_use(runs: Runs) -> None:
    clean, validation = runs["clean"], "decided on each site&#8217;s validation patients"
    assert validation in render(clean, {})
    always = clean.model_copy(update={"personal_use": "always"})
    page = render(always, {})
    assert validation not in page
    assert "because the job says so" in page
    noisy = FIXTURES["personal_within_noise"](always)
    words = next(li.words for li in limits(noisy) if li.head.startswith("Personal over shared"))
    assert "because the job says so" in words
    assert "validation" not in words
    # A validation split that chose nothing cannot have been too large for the test split.
    small = FIXTURES["test_against_validation"]
    assert len(limits(small(clean))) == len(limits(small(always))) + 1
    none = always.model_copy(update={"personalization": "none"})
    assert "because the job says so" not in render(none, {})


FIXTURES: dict[str, Callable[[Results], Results]] = {
    "not_finished": lambda r: r.model_copy(update={"status": "stopped"}),
    "not_in_last_round": lambda r: lose(r, "a", 20),
    "contribution_lost": lambda r: lose(r, "a", 7),
    "poorly_calibrated": lambda r: change(r, "a", **_metrics(r.sites["a"], "ece", 0.081)),
    "not_measurable": lambda r: change(
        r, "a", differences={}, not_measured={"auroc": "no labels at this site"}
    ),
    "few_patients": lambda r: change(r, "e", **_small_test(r.sites["e"])),
    "wide_interval": lambda r: change(
        r, "a", **_gain(r.sites["a"], "personal_minus_local", row(0.2, -0.4, 0.8))
    ),
    "personal_within_noise": lambda r: change(
        change(
            change(r, "a", **_gain(r.sites["a"], "personal_minus_shared", row(0, -0.1, 0.1))),
            "b", **_gain(r.sites["b"], "personal_minus_shared", row(0, -0.1, 0.1)),
        ),
        "c", **_gain(r.sites["c"], "personal_minus_shared", row(0, -0.1, 0.1)),
    ),
    "test_against_validation": lambda r: change(
        r, "a", splits={**r.sites["a"].splits, "val": r.sites["a"].splits["test"]}
    ),
    "withheld": lambda r: change(
        r, "a", not_measured={"r5": "withheld, under 20 test patients"}
    ),
    "no_baseline": lambda r: r.model_copy(
        update={
            "sites": {
                n: s.model_copy(
                    update={"metrics": {m: v for m, v in s.metrics.items() if m != "centralised"}}
                )
                for n, s in r.sites.items()
            }
        }
    ),
    "small_gallery": lambda r: change(r, "a", gallery_texts=99),
}  # fmt: skip


def test_every_rule_has_a_fixture() -> None:
    assert FIXTURES.keys() | ALWAYS == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("rule", FIXTURES)
def test_a_rule_fires_on_its_fixture_and_on_nothing_else(runs: Runs, rule: str) -> None:
    assert fired(FIXTURES[rule](runs["clean"])) == ALWAYS | {rule}


def test_limits_come_gravest_first(runs: Runs) -> None:
    levels = [limit.level for limit in limits(runs["lossy"])]
    assert levels == sorted(levels, key=LEVELS.index)
    assert limits(runs["lossy"])[0].head == "Dunmere is not in the last round."


# --- who took part -----------------------------------------------------------------------


def test_flow_numbers_add_up(runs: Runs) -> None:
    patients = patient_flow(runs["lossy"])
    assert [stage.n for stage in patients] == [15208, 6760, 4500]
    assert patients[1].out == ((2260, "at Harrowby: no images at this site"),)
    sites = site_flow(runs["lossy"])
    assert [stage.n for stage in sites] == [8, 8, 7, 7, 4]
    assert boxes(sites)[3].n == "7 of 8"


def test_events_name_reason_and_what_was_done(runs: Runs) -> None:
    found = [(e.site, e.rounds, e.what, e.done) for e in events(runs["lossy"])]
    assert ("Dunmere", "14, 20", "Missing: deadline", "Round closed with 7 sites") in found
    assert ("Coordinator", "11", "Run interrupted", "Resumed from round 10 as committed") in found


def test_many_rounds_are_binned_and_the_worst_state_wins(runs: Runs) -> None:
    assert len(bins(40)) == 40
    assert (len(bins(200)), len(bins(41))) == (40, 21)
    results = lose(runs["two-hundred"], "Site 12", 7)
    strip = next(r.strip for r in rounds_rows(results) if r.site == "Site 12")
    assert strip.count("#cell-missing") == 1
    assert "rounds 6 to 10: 1 missing, 4 contributed" in strip


# --- what may be printed -----------------------------------------------------------------


def test_counts_under_20_are_not_printed() -> None:
    assert [coarse(n) for n in (0, 1, 19, 20, 24, 25)] == [0, "under 20", "under 20", 20, 20, 30]


def test_private_results_keep_no_small_group(runs: Runs) -> None:
    shown = released(runs["private"])
    site = shown.sites["Kestrel"]
    assert site.metrics == {m: {} for m in site.metrics}
    assert site.not_measured["auroc"] == "withheld, under 20 test patients"
    assert all(b.n >= 20 for s in shown.sites.values() for b in s.calibration)
    assert shown.pictures == {}
    assert all(q.text == "" and q.found == {} for q in shown.gallery)
    patients = json.loads(embedded(shown))["sites"]["Kestrel"]["splits"]["test"]["patients"]
    assert patients == "under 20"


def test_only_a_simulation_on_phantom_or_public_data_is_exact(runs: Runs) -> None:
    assert exact(runs["phantom"])
    assert exact(runs["real"])
    assert not exact(runs["private"])
    assert not exact(runs["phantom"].model_copy(update={"engine": "deployment"}))


def test_a_public_picture_needs_a_licence(runs: Runs) -> None:
    public = runs["phantom"].model_copy(update={"origin": DatasetOrigin(origin="public")})
    assert "<img" not in render(public, {})
    licensed = DatasetOrigin(origin="public", licence="CC BY 4.0")
    assert "<img" in render(public.model_copy(update={"origin": licensed}), {})


def test_embedded_numbers_end_no_script_element(runs: Runs) -> None:
    text = embedded(runs["hostile"])
    assert "<" not in text
    assert "<script>alert(1)</script>" in json.loads(text)["sites"]


def test_numbers_that_are_not_finite_leave_no_trace(runs: Runs) -> None:
    results = change(
        runs["clean"], "a",
        course=[runs["clean"].sites["a"].course[0].model_copy(update={"loss": float("nan")})],
    )  # fmt: skip
    assert "NaN" not in render(results, {})


# --- noise for whole sites ---------------------------------------------------------------


def of_the_coordinator(results: Results) -> Results:
    """The same run, every site of which has the coordinator's statement."""
    claim = Claim(
        mode="site-level",
        mechanism="noise on the sum",
        unit="site",
        adjacency="zero-out",
        epsilon=3.801,
        delta=1e-3,
        units=len(results.sites),
        clip=1.0,
        noise=(8.0,),
        sampling="none: all in every step",
        steps=20,
        composed="20 rounds of 1 run",
        trust=trust_of("site-level", sums_only=True),
        not_covered=NOT_COVERED_OF_SITES,
        accountant="a",
    )
    told = {"privacy": claimed(claim)}
    sites = {name: site.model_copy(update=told) for name, site in results.sites.items()}
    return results.model_copy(update={"sites": sites})


def test_noise_for_whole_sites_is_no_promise_to_patients(runs: Runs) -> None:
    results = of_the_coordinator(runs["clean"])
    found = answers(results)[2]
    assert found.bold == (
        "Differential privacy for each site as a whole, not against the coordinator and for no "
        "single patient: ε at most 3.81 at δ = 0.001"
    )
    assert "What one patient's records change was not bounded" in found.detail
    heads = {limit.head for limit in limits(results)}
    assert "No differential privacy for patients: no claim." in heads
    page = render(results, {})
    assert page.count("ε = 3.81 at δ = 0.001, 20 rounds, the site as a whole") >= len(results.sites)
    assert "what one site sent in all rounds replaced by no change" in page
    assert NOT_COVERED_OF_SITES[0] in page
    assert "Every site trained with differential privacy for its patients" not in page


# --- the page ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["phantom", "real", "failed", "one", "two", "largest"])
def test_same_input_same_bytes(runs: Runs, name: str) -> None:
    page = render(runs[name], {"seed": 7})
    assert page == render(runs[name].model_copy(deep=True), {"seed": 7})
    assert len(page.encode()) <= MOST_BYTES


def test_a_hostile_site_name_is_text(runs: Runs) -> None:
    page = render(runs["hostile"], {"note": "<img src=x onerror=alert(1)>"})
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_over_budget_the_gallery_shrinks_first_with_a_sentence(runs: Runs) -> None:
    heavy = "data:image/webp;base64," + "A" * 60_000
    base = runs["phantom"]
    page = render(base.model_copy(update={"pictures": dict.fromkeys(base.pictures, heavy)}), {})
    assert len(page.encode()) <= MOST_BYTES
    assert "Shown: 2 of 4 queries, to keep this file under 2 MB." in page
    assert "Thin peripheral lucency" in page  # the worst quarter stays
    assert "All numbers behind Figure 9" in page


def test_results_without_an_origin_are_private(runs: Runs, tmp_path: Path) -> None:
    data = json.loads(runs["phantom"].model_dump_json())
    del data["origin"]
    (tmp_path / "results.json").write_text(json.dumps(data), encoding="utf-8")
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert "<img" not in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a report needs a run"),
        ("{", "not valid JSON"),
        ("[]", "one JSON object"),
        ('{"schema_version": 99}', "schema version 99, expected 1"),
        ('{"schema_version": 1}', "name: Field required"),
    ],
)
def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=message):
        write_report(tmp_path)


def test_the_record_leaves_no_value_of_python(runs: Runs) -> None:
    manifest = {
        "device": None,
        "threads": 2,
        "ok": True,
        "shift": -0.5,
        "seeds": [1, 2],
        "none": [],
    }
    rows = dict(flat(manifest))
    assert rows == {
        "device": "not recorded", "threads": "2", "ok": "yes", "shift": "\u22120.5",
        "seeds": "1, 2", "none": "none",
    }  # fmt: skip
    labels = [label for label, _ in record(runs["lossy"], {"Seed": 7, "git": "abc"})]
    assert labels.count("Seed") == 1
    assert "git" in labels


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, simulations.report, simulations.report.pictures\n"
        "print(sorted({'torch', 'flwr', 'matplotlib', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pictures_are_small_webp() -> None:
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(0, 256, (96, 96), dtype=np.uint8),
        rng.random((300, 200, 3)),
        np.zeros((96, 96, 1), dtype=np.uint8),
    ):
        uri = encode_picture(pixels)
        assert uri.startswith("data:image/webp;base64,")
        assert len(uri) < 8_030
    with pytest.raises(ValueError, match="a picture is"):
        encode_picture(np.zeros((2, 2, 7)))


def test_a_bin_of_few_predictions_is_hollow(runs: Runs) -> None:
    few = CalibrationBin(predicted=0.9, observed=0.8, low=0.5, high=0.95, n=19)
    results = change(runs["clean"], "a", calibration=[few])
    assert 'class="hollow s-personal"' in render(results, {})
