"""A job becomes a run in the coordinator's folder; what only a simulation can do is refused."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fake_federation import BASE, LAYOUT
from rich.console import Console

from server import submit
from server.checkpoint import RunStore
from server.flower_app import write_app
from server.history import RunHistory
from server.home import CoordinatorHome
from server.status import run_status, status_command
from server.submit import resume_command, stop_command, submit_command
from server.vehicle import Vehicle, read_vehicle, write_vehicle
from shared.errors import ConfigError, RunDirectoryError, StorageError
from shared.flower_calls import SuperLink
from shared.layout_file import layout_bytes, load_layout
from shared.processes import environment, program

JOB = 'name = "toy"\nseed = 2\nrounds = 2\n[lora]\nrank = 2\n'
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("CONSILIA_HISTORY", raising=False)
    home = CoordinatorHome.at(tmp_path / "co")
    home.folder.mkdir()
    home.write_address("127.0.0.1:1", None)
    monkeypatch.setattr(SuperLink, "is_well", lambda *_: True)
    return home


@pytest.fixture
def vehicles(monkeypatch):
    """Flower: takes everything, and remembers it."""
    calls = []

    def start(home, run):
        calls.append(("start", run))
        return len(calls)

    monkeypatch.setattr(submit, "start_vehicle", start)
    monkeypatch.setattr(submit, "stop_vehicle", lambda home, run: calls.append(("stop", run)))
    return calls


@pytest.fixture
def files(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "layout.json").write_bytes(layout_bytes(LAYOUT, BASE))
    return tmp_path / "job.toml", tmp_path / "layout.json"


def begin(home, run, status="running"):
    """As the ServerApp does first."""
    with RunStore.open(home.runs / run, lock=False) as store, RunHistory(home.history_url) as all_:
        known = {"token": store.token, "job_sha256": store.job.digest(), "base_sha256": BASE}
        all_.start_run(run, **known, seed=2, rounds=2)
        all_.finish_run(run, status)


def test_secure_aggregation_needs_a_consortium_and_status_says_that_it_is_on(
    home, tmp_path, capsys, monkeypatch
):
    job, layout = tmp_path / "job.toml", tmp_path / "layout.json"
    job.write_text(JOB + "[privacy]\nsecure_aggregation = true\n")
    layout.write_bytes(layout_bytes(LAYOUT, BASE))
    with pytest.raises(ConfigError, match=r"no consortium in .*consilia server init"):
        submit_command(home, job, layout)
    assert not home.runs.exists()
    (home.folder / "consortium").mkdir()
    monkeypatch.setattr(submit, "start_vehicle", lambda *_: 1)
    run = submit_command(home, job, layout)
    assert run_status(home, run, None).secure_aggregation
    status_command(home, run, Console(width=120), as_json=False)
    assert "secure aggregation" in capsys.readouterr().out


def test_the_price_of_noise_for_whole_sites_is_told_to_whoever_submits_it(home, tmp_path, vehicles):
    job, layout = tmp_path / "job.toml", tmp_path / "layout.json"
    hidden = 'mode = "site-level"\nunit = "site"\ndelta = 1e-3\n'
    job.write_text(
        JOB + '[data]\nsites = ["a", "b", "c"]\n'
        "[privacy]\ndifferential_privacy = true\nnoise_multiplier = 3.0\n" + hidden
    )
    layout.write_bytes(layout_bytes(LAYOUT, BASE))
    told = []
    submit_command(home, job, layout, told.append)
    price, warning = told
    assert "3 times the clipping norm on their sum" in price
    assert "noise of 1 of the clipping norm on each number of the mean" in price
    assert warning.startswith("Warning: the noise outweighs")


def test_a_job_becomes_a_run_that_flower_carries(home, vehicles, files):
    run = submit_command(home, *files)
    assert run == "toy-2"
    assert vehicles == [("start", "toy-2")]
    path = home.runs / run
    assert load_layout(path / "layout.json") == (LAYOUT, BASE)
    with RunStore.open(path) as store:
        assert (store.run, store.base_sha256, store.job.rounds) == (run, BASE, 2)
        assert store.manifest["engine"] == "deployment"
    assert read_vehicle(path) == Vehicle(1)
    assert submit_command(home, *files) == "toy-2-2"


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('[partition]\nkind = "iid"\nsites = 3\n', r"\[partition\]"),
        ('[aggregate]\nrule = "creamfl"\n[proxy]\nfolder = "p"\n', "creamfl"),
        (
            "[privacy]\ndifferential_privacy = true\nepsilon = 8\n"
            '[proxy]\nfolder = "public"\n[personalize]\nmethod = "none"\n',
            r"proxy.sha256.*consilia data describe",
        ),
    ],
)
def test_what_only_a_simulation_has_is_refused(home, vehicles, files, table, named):
    files[0].write_text(JOB.replace("[lora]\nrank = 2\n", "") + table)
    with pytest.raises(ConfigError, match=named):
        submit_command(home, *files)
    assert vehicles == []
    assert not home.runs.exists()


def test_a_layout_of_another_rank_is_refused(home, vehicles, files):
    files[0].write_text(JOB.replace("rank = 2", "rank = 3"))
    with pytest.raises(ConfigError, match=r"lora\.rank = 3"):
        submit_command(home, *files)
    assert not home.runs.exists()


def test_without_a_coordinator_nothing_is_made(home, vehicles, files, monkeypatch):
    monkeypatch.setattr(SuperLink, "is_well", lambda *_: False)
    with pytest.raises(ConfigError, match="consilia server start"):
        submit_command(home, *files)
    assert not home.runs.exists()


def test_a_run_is_stopped_for_good_and_resumed(home, vehicles, files):
    run = submit_command(home, *files)
    with pytest.raises(RunDirectoryError, match="under way"):
        resume_command(home, run)
    begin(home, run)
    stop_command(home, run)
    assert vehicles[1:] == [("stop", 1)]
    assert read_vehicle(home.runs / run) == Vehicle(1, wanted=False)
    assert run_status(home, run, None).name == run
    with RunHistory(home.history_url) as history:
        assert history.run(run).status == "stopped"
    resume_command(home, run)
    assert read_vehicle(home.runs / run) == Vehicle(3)


def test_a_finished_run_is_not_resumed(home, vehicles, files):
    run = submit_command(home, *files)
    begin(home, run, "finished")
    write_vehicle(home.runs / run, Vehicle(1, wanted=False))
    with pytest.raises(RunDirectoryError, match="finished"):
        resume_command(home, run)
    stop_command(home, run)
    with RunHistory(home.history_url) as history:
        assert history.run(run).status == "finished"


def test_a_run_that_flower_does_not_take_is_told(home, files, monkeypatch):
    monkeypatch.setattr("server.flower_app.flower", lambda *_: {"error-message": "no such thing"})
    with pytest.raises(StorageError, match="no such thing"):
        submit_command(home, *files)


def test_status_tells_who_is_awaited_and_who_was_left_out(home, vehicles, files, capsys):
    run = submit_command(home, *files)
    begin(home, run)
    events = [
        {"kind": "site-working", "round": 0, "site": "node 7", "seconds": 1.0},
        {"kind": "site-described", "site": "north"},
        {"kind": "round-started", "round": 1, "cohort": ["east", "north", "south"]},
        {"kind": "site-replied", "round": 1, "site": "north"},
        {"kind": "site-working", "round": 1, "site": "east", "seconds": 9.0},
        {"kind": "site-dropped", "round": 1, "site": "south", "state": "refused", "reason": "data"},
    ]
    lines = [json.dumps(event | {"time": "2026-01-02T03:04:05+00:00"}) for event in events]
    (home.runs / run / "events.jsonl").write_text("\n".join(lines) + '\n{"kind": "torn')
    with RunHistory(home.history_url) as history:
        now = run_status(home, run, history.run(run))
    assert now.phase == "round 1"
    found = [(site.name, site.state, site.reason) for site in now.sites]
    assert found == [
        ("east", "working", None),
        ("north", "in", None),
        ("south", "refused", "data"),
    ]
    status_command(home, None, Console(width=100), as_json=False)
    printed = capsys.readouterr().out
    assert "coordinator up" in printed
    assert re.search(r"south +refused +data", printed)


def test_the_app_is_the_same_to_the_byte_and_holds_no_code(tmp_path):
    digests = set()
    for name in ("one", "two"):
        home = CoordinatorHome.at(tmp_path / name)
        home.folder.mkdir()
        write_app(home, SuperLink("http://127.0.0.1:1"))
        subprocess.run(
            [program("flwr"), "build"],
            cwd=home.app,
            env=environment(home.flower),
            check=True,
            capture_output=True,
        )
        [fab] = home.app.glob("*.fab")
        digests.add(hashlib.sha256(fab.read_bytes()).hexdigest())
        names = set(zipfile.ZipFile(fab).namelist())
        assert names == {"pyproject.toml", "README.md", ".info/CONTENT"}
    assert len(digests) == 1


@pytest.mark.parametrize("module", ["server.submit", "server.start", "server.watch", "server.cli"])
def test_the_coordinator_needs_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
