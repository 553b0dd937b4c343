"""A report of a deployed run: from what its coordinator kept, and from nothing else."""

import json
import shutil

import pytest

from server.history import RunHistory
from shared.errors import RunDirectoryError
from shared.results import Results
from simulations.cli import main
from simulations.deployed import refresh_results
from simulations.results import NO_EVALUATION


@pytest.fixture(scope="module")
def home(make_federation, tmp_path_factory):
    """A coordinator's folder with one finished run, and what the run came to."""
    folder = tmp_path_factory.mktemp("deployed")
    run = folder / "runs" / "job-1"
    outcome = make_federation(folder / "federation").run(run)
    shutil.move(run / "history.sqlite", folder / "history.sqlite")  # where a coordinator has it
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "engine": "deployment"}))
    return folder, outcome


@pytest.fixture
def run(home, tmp_path):
    """A copy of the run, in a copy of the coordinator's folder."""
    folder = tmp_path / "coordinator"
    shutil.copytree(home[0], folder, ignore=shutil.ignore_patterns("federation", "sites"))
    return folder / "runs" / "job-1"


def results_of(run):
    return Results.model_validate_json((run / "results.json").read_text())


def test_holds_what_the_sites_released(home, run):
    outcome = home[1]
    refresh_results(run)
    results = results_of(run)
    assert (results.status, results.engine) == ("finished", "deployment")
    assert results.rounds == outcome.rounds
    assert results.adapter_sha256 == outcome.shared.sha256()
    assert sorted(results.sites) == sorted(outcome.sites)
    for name, site in results.sites.items():
        assert site.metrics == outcome.evaluations[name].metrics
        assert site.participation == outcome.sites[name].participation
        assert site.bytes_up == outcome.sites[name].bytes_up
    assert results.sites["a-paired"].pairs == 20  # the history keeps the lower end of a bucket
    assert results.sites["b-image"].pairs == 0


def test_says_nothing_of_records_that_no_site_told(run):
    refresh_results(run)
    results = results_of(run)
    assert results.origin.origin == "private"
    assert not results.pictures
    assert not results.gallery
    assert not any(site.splits or site.description for site in results.sites.values())


def test_a_site_that_did_not_evaluate_is_named(run):
    (run / "evaluations" / "b-image.json").unlink()
    refresh_results(run)
    results = results_of(run)
    assert results.sites["b-image"].metrics == {}
    assert set(results.sites["b-image"].not_measured.values()) == {NO_EVALUATION}


def test_the_end_is_the_historys(run):
    with RunHistory.at(run.parents[1] / "history.sqlite") as history:
        history.finish_run("job-1", "finished-incomplete", "b-image: away")
    refresh_results(run)
    results = results_of(run)
    assert (results.status, results.exit_code) == ("finished-incomplete", 3)
    assert results.reason == "b-image: away"


def test_a_run_that_has_not_begun_has_no_report(run):
    (run.parents[1] / "history.sqlite").unlink()
    with pytest.raises(RunDirectoryError, match="has not begun"):
        refresh_results(run)
    assert not (run / "results.json").exists()


def test_a_simulated_run_keeps_its_own_results(run):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "engine": "local"}))
    (run / "results.json").write_text("its own")
    refresh_results(run)
    assert (run / "results.json").read_text() == "its own"


def test_the_command_writes_the_page(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["consilia", "report", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert results_of(run).adapter_sha256 in page
    assert "what they reveal was not bounded" in page  # of a deployment, not of a simulation
    assert "the sites do not tell" in page  # how many patients there are
    assert "no test split" not in page
