import importlib.util
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel
from rich.console import Console

from server.outcome import RunOutcome, SiteLog
from shared.adapter import SharedAdapter
from shared.config import parse_job
from shared.errors import StorageError
from shared.page.numbers import MINUS
from shared.results import (
    METRICS,
    CoursePoint,
    DatasetOrigin,
    Estimate,
    ParticipationCell,
    Results,
    RoundCost,
    SiteEvaluation,
)
from simulations import results_doc
from simulations.results import (
    NO_EVALUATION,
    RunFacts,
    build_results,
    origin_of,
    status_of,
    write_results,
)
from simulations.results_table import results_table
from simulations.summary import mean_estimate, mean_of, worst_of

_spec = importlib.util.spec_from_file_location(
    "stub_encoder", Path(__file__).parents[1] / "client" / "stub_encoder.py"
)
stub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stub)

JOB = parse_job({"name": "trial", "rounds": 2})
FACTS = RunFacts(
    run="trial-1",
    created="2026-01-01T10:00:00+00:00",
    finished="2026-01-01T10:02:00+00:00",
    engine="local",
    base_name="consilia-tiny",
    base_sha256="0" * 64,
    seconds=120.0,
    peak_memory_bytes=100,
)


def log():
    return SiteLog(
        kind="paired",
        participation=[ParticipationCell(state="in"), ParticipationCell(state="in")],
        course=[CoursePoint(round=0, loss=1.5)],
        seconds={"train": 3.0},
        bytes_up=10,
        bytes_down=20,
        peak_memory_bytes=500,
        gradient_norms={"image": [0.5, 0.25]},
        discrepancy={"image": [2.0, 4.0]},
    )


def estimate(value, half=0.05, n=40):
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def evaluation(base, local, shared, personal, half=0.05):
    levels = {"base": base, "local": local, "shared": shared, "personal": personal}
    return SiteEvaluation(
        metrics={
            m: {"auroc": estimate(v, half), "ece": estimate(1 - v)} for m, v in levels.items()
        },
        differences={"personal_minus_local": {"auroc": estimate(personal - local, half)}},
        in_use={"image": "personal", "text": "shared"},
        not_measured=dict.fromkeys(("r1", "r5"), "no texts at this site"),
    )


SITES = {
    "aldern": evaluation(0.6, 0.7, 0.75, 0.8),
    "brackwater": evaluation(0.55, 0.72, 0.7, 0.74),
    "corvelle": evaluation(0.62, 0.8, 0.7, 0.72, half=0.02),
}


def outcome(**changes):
    return RunOutcome(
        **{
            "shared": SharedAdapter({"w": np.ones((2, 2), np.float32)}, folds=3),
            "rounds": 2,
            "sites": {name: log() for name in SITES},
            "round_costs": [
                RoundCost(round=1, seconds=2, bytes_up=10, bytes_down=20, contributors=3, asked=3)
            ],
            "evaluations": dict(SITES),
            "complete": True,
            "clipped": 1,
            "resumed_rounds": [2],
            "lost": {},
            "relative_error": 0.25,
            "seconds": 100.0,
            **changes,
        }
    )


def build(run=None, job=JOB, facts=FACTS, origin="phantom", **more):
    data = {name: replace(stub.make_site(origin=origin), name=name) for name in SITES}
    return build_results(run or outcome(), job, data, facts, **more)


def test_a_whole_run():
    results = build()
    assert (results.status, results.exit_code, results.reason) == ("finished", 0, None)
    assert (results.bytes_up, results.bytes_down, results.peak_memory_bytes) == (30, 60, 500)
    assert results.job_sha256 == JOB.digest()
    assert results.aggregation.model_dump() == {
        "rule": "altfold",
        "rank": 8,
        "folds": 3,
        "relative_error": 0.25,
        "clipped": 1,
    }
    site = results.sites["aldern"]
    assert (site.kind, site.pairs, site.splits["test"].patients) == ("paired", 60, 30)
    assert results.resumed_rounds == [2]
    assert site.course == [CoursePoint(round=0, loss=1.5)]
    assert site.gradient_norms == {"image": [0.5, 0.25]}
    assert site.discrepancy == {"image": [2.0, 4.0]}
    assert site.metrics == SITES["aldern"].metrics
    assert Results.model_validate_json(results.model_dump_json()) == results


def test_mean_by_hand():
    rows = [estimate(0.6, 0.03), estimate(0.8, 0.04)]
    # variances add: half-width sqrt(.03^2 + .04^2) / 2 = .025
    mean = mean_estimate(rows, 0.0)
    assert mean.value == pytest.approx(0.7)
    assert (mean.low, mean.high) == (pytest.approx(0.675), pytest.approx(0.725))
    assert mean.n == 2


def test_mean_of_one_site_is_that_site():
    only = Estimate(value=0.6, low=0.5, high=0.63, n=40)
    assert mean_estimate([only], 0.0) == Estimate(value=0.6, low=0.5, high=0.63, n=1)


def test_mean_stays_within_what_the_metric_can_be():
    mean = mean_estimate([estimate(0.98, 0.2), estimate(0.98, 0.2)], 0.0)
    assert mean.high == 1.0
    assert mean_estimate([estimate(-0.95, 0.2)] * 2, -1.0).low == -1.0


def test_interval_of_the_mean_covers_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(1), 0
    truth = np.array([0.5, 0.6, 0.7, 0.8])
    for _ in range(1000):
        rows = [estimate(v, 1.96 * 0.02) for v in truth + generator.normal(0, 0.02, 4)]
        mean = mean_estimate(rows, 0.0)
        hits += mean.low <= truth.mean() <= mean.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_mean_counts_only_sites_that_measured_and_worst_knows_the_direction():
    results = build()
    mean = mean_of(results.sites)
    assert mean.metrics["base"]["auroc"].value == pytest.approx((0.6 + 0.55 + 0.62) / 3)
    assert "r1" not in mean.metrics["base"]
    assert mean.differences["personal_minus_local"]["auroc"].value == pytest.approx(0.04 / 3)
    assert list(mean.differences) == ["personal_minus_local"]
    worst, names = worst_of(results.sites)
    assert (worst.metrics["local"]["auroc"].value, names["local"]["auroc"]) == (0.7, "aldern")
    assert names["base"]["ece"] == "brackwater"  # the largest error is the worst
    assert worst.metrics["base"]["ece"].value == pytest.approx(0.45)
    assert worst.differences["personal_minus_local"]["auroc"].value == pytest.approx(-0.08)


@pytest.mark.parametrize("state", ["missing", "refused"])
def test_a_lost_contribution_is_never_plain_success(state):
    run = outcome()
    run.sites["aldern"].participation[0] = ParticipationCell(state=state, reason="x")
    results = build(run)
    assert (results.status, results.exit_code) == ("finished-incomplete", 3)
    assert results.reason == "1 of 6 contributions were not admitted (aldern: x)"


def test_a_site_that_was_not_asked_or_not_needed_is_no_loss():
    run = outcome()
    run.sites["aldern"].participation[0] = ParticipationCell(state="idle")
    run.sites["corvelle"].participation[1] = ParticipationCell(
        state="idle", reason="enough-answered"
    )
    assert build(run).status == "finished"


def test_a_site_that_did_not_evaluate_is_named():
    run = outcome()
    del run.evaluations["brackwater"]
    results = build(run)
    assert results.status == "finished-incomplete"
    assert results.reason == "no evaluation from brackwater"
    assert results.sites["brackwater"].not_measured == dict.fromkeys(METRICS, NO_EVALUATION)
    assert results.mean.metrics["base"]["auroc"].n == 2


def test_a_site_that_was_never_heard_keeps_its_counts():
    run = outcome()
    del run.sites["corvelle"], run.evaluations["corvelle"]
    results = build(run)
    assert results.sites["corvelle"].splits["train"].images == 60
    assert results.status == "finished-incomplete"


def test_missing_rounds_and_an_engine_that_says_incomplete():
    assert status_of(outcome(rounds=1), JOB, SITES) == (
        "finished-incomplete",
        "1 of 2 rounds were committed",
    )
    silent = outcome(complete=False, lost={"aldern": "deadline"})
    assert status_of(silent, JOB, SITES) == (
        "finished-incomplete",
        "not every request was answered: aldern",
    )


@pytest.mark.parametrize("ended", ["stopped", "failed"])
def test_a_run_that_ended_early_exits_with_one(ended):
    results = build(facts=replace(FACTS, ended=ended, reason="too few sites in round 2"))
    assert (results.status, results.exit_code) == (ended, 1)
    assert results.reason == "too few sites in round 2"


def test_the_most_protected_origin_decides():
    phantom = DatasetOrigin(origin="phantom", description="made")
    public = DatasetOrigin(origin="public", licence="CC0", description="taken")
    bare = DatasetOrigin(origin="public")
    private = DatasetOrigin(origin="private", description="secret ward")
    assert origin_of([phantom, phantom]) == phantom
    both = origin_of([phantom, public])
    assert (both.origin, both.licence, both.description) == ("public", "CC0", "made; taken")
    assert origin_of([public, bare]).licence == ""
    assert origin_of([public, private]) == DatasetOrigin(origin="private")
    assert origin_of([]).origin == "private"


def test_results_file_is_whole_and_plain_json(tmp_path):
    results = build()
    path = write_results(tmp_path, results)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert Results.model_validate(content) == results
    assert not any(isinstance(v, float) and math.isnan(v) for v in _leaves(content))
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def _leaves(tree):
    if isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)
    else:
        yield tree


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    path = write_results(tmp_path, build())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="no space left"):
        write_results(tmp_path, build(facts=replace(FACTS, run="other")))
    assert path.read_bytes() == before


def render(results, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(results))
    return console.export_text()


def test_table_says_what_the_intervals_say():
    text = render(build())
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert "brackwat…" in text  # only the name under a worst value is cut
    assert "+0.100 better" in text
    assert "+0.020 within noise" in text
    assert f"{MINUS}0.080 worse" in text
    assert "AUROC: higher is better, chance 0.5" in text
    assert "paired, 60 pairs" in text
    assert "0.750" in text
    assert "0.70–0.80" in text
    assert "mean of sites" in text
    assert "worst site" in text
    assert "Joining was worse at corvelle" in " ".join(text.split())


def test_table_fits_with_every_model_long_names_and_unmeasured_sites():
    def rename(results):
        wide = {
            "a-hospital-with-quite-a-long-name": results.sites["aldern"],
            "[bold]markup[/bold]": results.sites["brackwater"],
            "corvelle": results.sites["corvelle"].model_copy(
                update={
                    "metrics": {},
                    "differences": {},
                    "not_measured": {"auroc": "no finding with three positive and three negative"},
                }
            ),
        }
        for name in ("a-hospital-with-quite-a-long-name", "[bold]markup[/bold]"):
            site = wide[name]
            extra = {**site.metrics, "centralised": site.metrics["shared"]}
            wide[name] = site.model_copy(update={"metrics": extra, "pairs": 123456})
        worst, names = worst_of(wide)
        return results.model_copy(
            update={"sites": wide, "mean": mean_of(wide), "worst": worst, "worst_site": names}
        )

    text = render(rename(build()))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "[bold]markup[/bold]" in text
    assert "central." in text
    assert "no finding with three" in text


def test_table_of_a_run_that_measured_nothing():
    run = outcome()
    run.evaluations.clear()
    text = render(build(run))
    assert "nothing could be measured" in " ".join(text.split())


def test_documents_are_up_to_date():
    hint = "run: python -m simulations.results_doc"
    assert (results_doc.DOCS / "results.md").read_text() == results_doc.document(), hint
    assert (results_doc.DOCS / "results.schema.json").read_text() == results_doc.schema(), hint


def test_every_field_is_documented():
    # The generator looks every field up in its class's docstring and fails on a missing one.
    class Bare(BaseModel):
        """A model whose field has no meaning."""

        field: int

    assert "| `exit_code` | int | Of the command: 0, 1 or 3. |" in results_doc.document()
    with pytest.raises(KeyError, match="field"):
        results_doc._section(Bare)
