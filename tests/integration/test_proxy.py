"""The whole command with a public set: measured, recorded, reported, and resumed bit for bit."""

import json

import pytest
from rich.console import Console

from server.history import RunHistory
from shared.config import JobConfig
from shared.errors import InterruptedRunError, RunDirectoryError
from simulations.report import write_report
from simulations.simulate import simulate
from tests.integration.conftest import write_site


@pytest.fixture(scope="module")
def job(make_federation, site_of, tmp_path_factory):
    """A paired, an image-only and a text-only site, two rounds, and 48 public pairs."""
    folder = tmp_path_factory.mktemp("proxy")
    federation = make_federation(folder)
    write_site(folder / "public", site_of("public", counts=(48, 8, 8), seed=40))
    tree = federation.job.model_dump(mode="json")
    tree["data"] |= {"folder": str(federation.data)}
    tree["proxy"] |= {"folder": str(folder / "public"), "steps": 10, "learning_rate": 0.01}
    tree["train"] |= {"steps": 20, "learning_rate": 0.01}  # enough to have something to distil
    tree["personalize"] |= {"method": "none"}
    tree["evaluate"] |= {"baselines": [], "gallery_queries": 0}
    return JobConfig.model_validate(tree)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, simulate(run, job, Console(quiet=True))


def test_every_round_says_what_came_of_it(whole):
    run, results = whole
    assert results.status == "finished"
    steps = [cost.proxy for cost in results.round_costs]
    assert len(steps) == 2
    assert all(step is not None and step.accepted == (step.after < step.before) for step in steps)
    saved = json.loads((run / "results.json").read_text())
    assert saved["round_costs"][0]["proxy"] == steps[0].model_dump()
    page = write_report(run).read_text(encoding="utf-8")
    assert "After 2 rounds the server distilled" in page
    assert f"{steps[1].before:.3f}" in page


def test_the_distilled_adapter_is_another_than_the_aggregated_one(job, whole, tmp_path):
    tree = job.model_dump(mode="json")
    tree.pop("proxy")
    plain = simulate(tmp_path / "run", JobConfig.model_validate(tree), Console(quiet=True))
    assert any(cost.proxy.accepted for cost in whole[1].round_costs)
    assert plain.adapter_sha256 != whole[1].adapter_sha256
    assert all(cost.proxy is None for cost in plain.round_costs)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "the server distilled" not in page


def test_a_run_stopped_before_its_commit_ends_with_the_same_bits(job, whole, tmp_path, monkeypatch):
    record = RunHistory.record_round

    def stopped(history, name, done):
        if done.round == 2:
            raise KeyboardInterrupt
        return record(history, name, done)

    with monkeypatch.context() as patch:
        patch.setattr(RunHistory, "record_round", stopped)
        with pytest.raises(InterruptedRunError):
            simulate(tmp_path / "run", job, Console(quiet=True))
    results = simulate(tmp_path / "run", job, Console(quiet=True))
    assert results.adapter_sha256 == whole[1].adapter_sha256
    assert [c.proxy for c in results.round_costs] == [c.proxy for c in whole[1].round_costs]


def test_another_set_than_the_run_began_with(job, whole, site_of, tmp_path):
    write_site(tmp_path / "other", site_of("other", counts=(48, 8, 8), seed=41))
    tree = job.model_dump(mode="json")
    tree["proxy"] |= {"folder": str(tmp_path / "other")}
    with pytest.raises(RunDirectoryError, match="is not the one that the run began with"):
        simulate(whole[0], JobConfig.model_validate(tree), Console(quiet=True))
