"""Carrying out a comparison: nothing twice, and after an interruption the same table."""

import json
import math

import numpy as np
import pytest
from rich.console import Console

from client.agent import load_records
from shared.adapter import SharedAdapter
from shared.errors import InterruptedRunError, QuorumError, RunDirectoryError, TrainingError
from shared.layout_file import load_adapter
from shared.model.view import AdapterView
from simulations.compare import run as running
from simulations.compare import scores as scoring
from simulations.compare.methods import parse_methods
from simulations.compare.plan import make_plan
from simulations.compare.run import carry_out, claim_folder, finished
from simulations.compare.scores import Scores, load_scores, on_others, views_in_use
from simulations.compare.table import make_rows
from simulations.machine import encoder_for, settle
from simulations.sites import site_settings


@pytest.fixture
def plan_of(job_file, tmp_path):
    def make(methods="fedavg+finetune", rates=(0.01,), seeds=2, out="out", **overrides):
        overrides = {"personalize.use": "always", **overrides}
        return make_plan(job_file, overrides, parse_methods(methods), rates, seeds, tmp_path / out)

    return make


def go(plan, jobs=1):
    return carry_out(plan, jobs, Console(quiet=True))


def table(plan):
    choices, found = go(plan)
    of_seed = {(name, seed): each for (name, _, seed), each in found.items()}
    rows, best = make_rows(plan.methods, choices, of_seed, plan.seeds, "auroc")
    varies = ("seconds", "bytes_up", "bytes_down")  # replies hold their seconds, as text
    kept = [{m: c for m, c in row.cells.items() if m not in varies} for row in rows]
    return [r.model_copy(update={"cells": c}) for r, c in zip(rows, kept, strict=True)], best


def test_after_an_interruption_the_same_command_ends_with_the_same_table(plan_of, monkeypatch):
    whole = table(plan_of(rates=(0.01, 0.02), seeds=1, out="whole"))
    plan, real, calls = plan_of(rates=(0.01, 0.02), seeds=1, out="cut"), running.carry_out_task, []

    def third_time(task):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(running, "carry_out_task", third_time)
    with pytest.raises(InterruptedRunError, match="go on with the same command"):
        go(plan)
    monkeypatch.setattr(running, "carry_out_task", real)
    before = {p: p.stat().st_mtime_ns for p in plan.out.glob("runs/*/*/scores.json")}
    assert len(before) == 2
    assert table(plan) == whole
    assert before == {p: p.stat().st_mtime_ns for p in before}  # not run again


def test_a_run_that_stopped_between_rounds_goes_on_to_the_same_bits(plan_of, monkeypatch):
    whole, cut = plan_of(out="whole", seeds=1), plan_of(out="cut", seeds=1)
    (_, first), real = go(whole), running.simulate

    def stopped(*given):
        real(*given)
        task = cut.compared(dict.fromkeys(cut.rows, 0.01))[0]
        (task.folder / "results.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "simulate", stopped)
    with pytest.raises(InterruptedRunError):
        go(cut)
    monkeypatch.setattr(running, "simulate", real)
    key = ("fedavg+finetune", 0.01, 1)
    after = go(cut)[1][key]
    ignored = {"seconds", "bytes_up", "bytes_down"}
    assert after.model_dump(exclude=ignored) == first[key].model_dump(exclude=ignored)


def test_a_finished_run_is_scored_and_not_run_again(plan_of, monkeypatch):
    plan = plan_of(seeds=1)
    _, first = go(plan)
    task = plan.compared(dict.fromkeys(plan.rows, 0.01))[0]
    (task.folder / "scores.json").unlink()
    monkeypatch.setattr(running, "simulate", lambda *_: pytest.fail("run again"))
    assert go(plan)[1] == first


def test_scores_of_another_job_are_not_taken(plan_of):
    plan = plan_of(seeds=1)
    go(plan)
    task = plan.compared(dict.fromkeys(plan.rows, 0.01))[0]
    assert load_scores(task) is not None
    assert finished(task) is not None
    path = task.folder / "scores.json"
    path.write_text(path.read_text().replace(task.job.digest(), "0" * 64))
    assert load_scores(task) is None
    path.write_text("{")
    assert load_scores(task) is None


def test_the_same_folder_takes_further_methods_and_seeds_and_no_other_job(plan_of, monkeypatch):
    go(plan_of("fedavg", seeds=1))
    ran, real = [], running.carry_out_task
    monkeypatch.setattr(
        running, "carry_out_task", lambda task: ran.append((task.method, task.seed)) or real(task)
    )
    go(plan_of("fedavg,ffa", seeds=2))
    assert sorted(ran) == [
        ("centralised", 2), ("fedavg", 2), ("ffa", 1), ("ffa", 2), ("local", 2),
    ]  # fmt: skip
    with pytest.raises(RunDirectoryError, match="holds a comparison of another job"):
        go(plan_of("fedavg", **{"train.steps": 3}))


def test_a_folder_of_something_else_is_left_alone(plan_of):
    plan = plan_of()
    plan.out.mkdir()
    (plan.out / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not empty and holds no comparison"):
        claim_folder(plan)
    assert [p.name for p in plan.out.iterdir()] == ["thesis.txt"]


def test_the_rate_is_that_of_the_best_main_metric_of_the_tuning_seed(plan_of):
    plan = plan_of("fedavg", rates=(1e-6, 0.01, 1.0), seeds=1)
    choices, found = go(plan)
    for name in plan.rows:
        tried = {t.rate: t.level for t in choices[name].tried}
        assert choices[name].rate == max(tried, key=lambda rate: tried[rate])
        scores = load_scores(plan.task(name, choices[name].rate, plan.tuning_seed))
        assert scores.level == tried[choices[name].rate]
        assert scores.others == {}  # no test split is looked at beyond what a run does anyway
    assert {seed for _, _, seed in found} == {1}


def test_a_method_that_diverges_everywhere_is_a_row_that_says_so(plan_of, monkeypatch):
    real = running.simulate

    def diverges(folder, job, console):
        if job.aggregate.rule == "ffa":
            raise QuorumError("round 1: 0 of 2 sites (north: loss-not-finite)")
        return real(folder, job, console)

    monkeypatch.setattr(running, "simulate", diverges)
    plan = plan_of("fedavg,ffa", rates=(0.01, 0.02), seeds=1)
    choices, found = go(plan)
    assert choices["ffa"].rate is None
    of_seed = {(name, seed): each for (name, _, seed), each in found.items()}
    rows, best = make_rows(plan.methods, choices, of_seed, plan.seeds, "auroc")
    assert best == "fedavg"
    assert rows[1].cells == {}
    assert rows[1].notes == ["diverged at every rate (0.01, 0.02)"]


def test_others_are_the_mean_over_all_test_splits_but_the_own(plan_of, monkeypatch):
    """Counts which view was scored on whose test split."""
    first, second = (AdapterView(SharedAdapter({})) for _ in range(2))
    value = {(0, "a"): 0.1, (0, "b"): 0.2, (0, "c"): 0.4, (1, "a"): 0.5, (1, "b"): 0.7}
    seen = []

    def evaluate(encoder, data, view, job):
        seen.append((int(view is second), data))
        return {"auroc": value[seen[-1]]}

    monkeypatch.setattr(scoring, "_evaluate", evaluate)
    views = {"a": first, "b": first, "c": second}
    found = on_others(None, {n: n for n in "abc"}, views, plan_of().job)
    assert found == pytest.approx({"a": 0.3, "b": 0.25, "c": 0.6})
    assert len(seen) == len(set(seen)) == 5  # a view in common is scored once per split


def test_an_adapter_that_diverged_has_no_numbers_on_others(plan_of, monkeypatch):
    def fails(*_, **__):
        raise TrainingError("embedding-not-finite", "x")

    monkeypatch.setattr(scoring, "evaluate_site", fails)
    job = plan_of().job
    assert on_others(None, {"a": 1, "b": 2}, dict.fromkeys("ab", AdapterView()), job) == {}


def test_the_model_in_use_is_the_personal_one_and_what_is_scored_is_what_the_run_measured(plan_of):
    far = {"personalize.steps": 12, "personalize.learning_rate": 0.1}
    plan = plan_of(seeds=1, **far)
    task = plan.compared(dict.fromkeys(plan.rows, 0.01))[0]
    own = running.carry_out_task(task).own
    results = finished(task)
    settings = {site.name: site for site in site_settings(task.folder, task.job)}
    views = views_in_use(task, results, settings)
    encoder = encoder_for(task.job, settle(task.job))
    for name, view in views.items():
        personal, shared = (results.sites[name].metrics[model] for model in ("personal", "shared"))
        assert own[name] == {metric: found.value for metric, found in personal.items()}
        assert own[name] != {metric: found.value for metric, found in shared.items()}
        again = scoring._evaluate(encoder, load_records(settings[name], encoder), view, task.job)
        assert again["auroc"] == pytest.approx(own[name]["auroc"])
        assert again["r5"] == pytest.approx(own[name]["r5"])


def test_a_run_that_lost_a_site_at_once_is_held_against_the_base_that_others_measured(plan_of):
    plan = plan_of("fedavg", rates=(0.01, 0.02))
    digest = plan.digest()
    tried = {
        (name, rate, plan.tuning_seed): Scores(
            job_sha256=digest, base_loss=None if name == "fedavg" else 1.0, loss=2.0
        )
        for name in plan.rows
        for rate in plan.rates
    }
    assert "above the base's at every rate" in running._choice(plan, "fedavg", tried).note


def test_references_train_as_long_as_the_federation_and_all_losses_are_finite(plan_of):
    plan = plan_of("fedavg", seeds=1)
    _, found = go(plan)
    for name in ("local", "centralised"):
        scores = found[name, 0.01, 1]
        assert math.isfinite(scores.loss)
        assert set(scores.own) == set(scores.others) == {"north", "south"}
        assert scores.reason is None
    folder = plan.task("local", 0.01, 1).folder
    adapters = [load_adapter(path) for path in sorted(folder.glob("sites/*/local.safetensors"))]
    assert len(adapters) == 2
    assert any(np.any(a.factors[n] != adapters[1].factors[n]) for a in adapters for n in a.factors)
    assert not (folder / "baselines" / "centralised.safetensors").exists()
    assert json.loads((plan.out / "plan.json").read_text())["digest"] == plan.digest()


def test_own_records_are_chosen_by_on_the_validation_split_synthetic_ones_on_a_seed_of_their_own(
    plan_of,
):
    plan = plan_of("fedavg")
    task = plan.tuning()[0] if plan.tuning() else plan.task("fedavg", 0.01, plan.tuning_seed)
    encoder = encoder_for(task.job, settle(task.job))
    site = site_settings(plan.data_folder(plan.seeds[0]), plan.job)[0]
    data = load_records(site, encoder)
    assert plan.job.data.folder is not None
    assert scoring.for_choice(data, plan.job).splits["test"] is data.splits["val"]
    assert scoring.for_choice(data, plan.job).splits["train"] is data.splits["train"]
    synthetic = plan.job.model_copy(
        update={"data": plan.job.data.model_copy(update={"folder": None})}
    )
    assert scoring.for_choice(data, synthetic) is data
