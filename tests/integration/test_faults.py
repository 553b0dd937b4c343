"""Runs that go wrong under way, through the whole command: what is told, kept and resumable."""

import csv
import errno
import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from client import fitting
from client.training import train_shared
from server.history import RunHistory
from server.job_text import to_toml
from shared import files
from shared.adapter import SharedAdapter
from shared.config import JobConfig, load_job
from simulations import machine
from simulations import simulate as simulation
from simulations.grid import LocalGrid

ROUNDS = 2


@pytest.fixture(scope="module")
def job(make_federation, tmp_path_factory):
    """A job file over three small sites: paired, image, text."""
    folder = tmp_path_factory.mktemp("faults")
    federation = make_federation(folder)
    tree = federation.job.model_dump(mode="json")
    tree |= {"name": "faults", "rounds": ROUNDS}
    tree["data"] |= {"folder": str(federation.data)}
    tree["train"] |= {"steps": 1}
    tree["personalize"] |= {"steps": 1}
    tree["evaluate"] |= {"baselines": [], "gallery_queries": 1}
    path = folder / "faults.toml"
    path.write_text(to_toml(JobConfig.model_validate(tree)), encoding="utf-8")
    return path


@pytest.fixture
def simulate(command, tmp_path):
    """``consilia simulate`` with the runs in the test's folder."""
    return lambda *arguments: command("simulate", *arguments, "--out", tmp_path)


@pytest.fixture
def listed(command, tmp_path):
    """What ``consilia runs list`` says of the only run."""

    def read():
        (entry,) = json.loads(command("runs", "list", "--out", tmp_path, "--json").out)
        return entry

    return read


@pytest.fixture
def failing(monkeypatch):
    """Let messages to sites fail, as the test's function of kind and node decides."""

    def let(fail):
        def hook(message):
            error = fail(message.metadata.message_type, message.metadata.dst_node_id)
            if error:
                raise error

        monkeypatch.setattr(simulation, "LocalGrid", partial(LocalGrid, fail=hook))

    return let


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    """sha256 of the adapter that the job comes to."""
    run = tmp_path_factory.mktemp("undisturbed") / "faults-1"
    simulation.simulate(run, load_job(job), Console(quiet=True))
    return sha256_of(run)


def sha256_of(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["adapter_sha256"]


def rounds_of(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def ended_well(ended, run, undisturbed):
    assert ended.code == 0, ended.err
    assert sha256_of(run) == undisturbed
    assert not list(run.rglob("*.unfinished"))
    return True


# --- a site ---


def test_a_site_whose_loss_is_not_a_number_is_left_out_of_the_round_and_named(
    simulate, listed, job, tmp_path, monkeypatch
):
    def diverging(encoder, tasks, run):
        assert [task.data.name for task in tasks] == ["a-paired", "b-image", "c-text"]
        first, *others = tasks
        if first.round == 1:
            factors = dict(first.start.factors)
            name = next(each for each in factors if ".lora_B" in each)
            factors[name] = np.full_like(factors[name], np.nan)
            broken = SharedAdapter(factors, first.start.residual, first.start.folds)
            first = replace(first, start=broken)
        return train_shared(encoder, [first, *others], run)

    monkeypatch.setattr("client.work.train_shared", diverging)
    ended = simulate(job)
    assert ended.code == 3, ended.err
    assert "Round 1: without a-paired (loss-not-finite)" in ended.out
    assert "were not admitted (a-paired: loss-not-finite)" in " ".join(ended.out.split())
    assert "request refused: loss-not-finite" in (tmp_path / "faults-1" / "log.txt").read_text()
    results = json.loads((tmp_path / "faults-1" / "results.json").read_text())
    cells = results["sites"]["a-paired"]["participation"]
    assert [(cell["state"], cell["reason"]) for cell in cells] == [
        ("refused", "loss-not-finite"),
        ("in", None),
    ]
    assert results["status"] == "finished-incomplete"
    assert (tmp_path / "faults-1" / "report.html").exists()
    entry = listed()
    assert entry["status"] == "finished-incomplete"
    assert "a-paired" in entry["reason"]


@pytest.mark.parametrize("kind", ["train.personalize", "evaluate"])
def test_a_site_that_fails_in_one_phase_is_named(simulate, listed, failing, job, tmp_path, kind):
    failing(lambda asked, node: OSError("zebra-report") if (asked, node) == (kind, 2) else None)
    ended = simulate(job)
    assert ended.code == 3, ended.err
    assert "b-image" in ended.out
    assert "zebra" not in ended.out + ended.err
    assert listed()["status"] == "finished-incomplete"
    assert "b-image" in listed()["reason"]
    assert (tmp_path / "faults-1" / "report.html").exists()


# --- all sites ---


def test_all_sites_failing_keeps_the_rounds_before(
    simulate, listed, failing, job, tmp_path, monkeypatch, undisturbed
):
    run, asked = tmp_path / "faults-1", []

    def second_round(kind, _):
        asked.append(kind)
        return OSError() if kind == "train" and asked.count("train") > 3 else None

    with monkeypatch.context():
        failing(second_round)
        ended = simulate(job)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    assert ended.line.startswith("consilia: error: round 2: 0 of 3 sites asked contributed")
    for words in ("at least 2", "a-paired: site-error", "1 of 2 rounds", f"--resume {run}"):
        assert words in ended.line
    assert rounds_of(run) == ["round-0001"]
    assert not (run / "results.json").exists()
    assert (listed()["status"], listed()["rounds"]) == ("failed", 1)
    failing(lambda *_: None)
    assert ended_well(simulate("--resume", run), run, undisturbed)
    assert listed()["status"] == "finished"


def test_no_site_answers_at_all(simulate, listed, failing, job):
    failing(lambda asked, _: OSError() if asked == "query.describe" else None)
    ended = simulate(job)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    assert "round 1: there is no site to ask (" in ended.line
    assert "0 of 2 rounds are committed" in ended.line
    assert "Before the rounds: without " in ended.out
    assert listed()["status"] == "failed"


def test_no_site_can_evaluate(simulate, listed, failing, job, tmp_path):
    failing(lambda asked, _: OSError() if asked == "evaluate" else None)
    ended = simulate(job)
    assert (ended.code, ended.err) == (3, "")
    assert "nothing could be measured" in " ".join(ended.out.split())
    assert listed()["status"] == "finished-incomplete"
    assert (tmp_path / "faults-1" / "report.html").exists()


# --- the disk ---


def test_a_disk_that_fills_during_a_commit(
    simulate, listed, job, tmp_path, monkeypatch, undisturbed
):
    run, write_new = tmp_path / "faults-1", files.write_new

    def full(path, *arguments, **options):
        if path.parent.name == ".round-0002":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_new(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_new", full)
        ended = simulate(job)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    for words in ("round 2 could not be stored", "round 1 is intact", f"--resume {run}"):
        assert words in ended.line
    assert "no space left on the disk" in ended.line
    assert (listed()["status"], listed()["rounds"]) == ("failed", 1)
    assert ended_well(simulate("--resume", run), run, undisturbed)
    assert rounds_of(run) == ["round-0001", "round-0002"]


def test_a_disk_that_is_full_when_the_results_come(
    simulate, listed, job, tmp_path, monkeypatch, undisturbed
):
    run, write_new = tmp_path / "faults-1", files.write_new

    def full(path, *arguments, **options):
        if path.name.startswith("results.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_new(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_new", full)
        ended = simulate(job)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    assert "no space left on the disk" in ended.line
    assert listed()["status"] == "failed"
    assert ended_well(simulate("--resume", run), run, undisturbed)
    assert listed()["status"] == "finished"


# --- the device ---


def test_a_device_that_is_gone_in_the_second_round(
    simulate, listed, job, tmp_path, monkeypatch, undisturbed
):
    run, rounds, begun = tmp_path / "faults-1", [], []

    def lost(encoder, tasks, config):
        rounds.append(tasks[0].round)
        with monkeypatch.context() as patch:
            if tasks[0].round == 2:
                patch.setattr(fitting, "encode", gone)
            return train_shared(encoder, tasks, config)

    def gone(*_):
        begun.append(1)
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nzebra-report")

    with monkeypatch.context() as patch:
        patch.setattr("client.work.train_shared", lost)
        ended = simulate(job)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    assert ended.line.startswith("consilia: error: the device that trained a-paired stopped")
    for words in ("1 of 2 rounds are committed and intact", f"go on with --resume {run}"):
        assert words in ended.line
    assert (rounds, begun) == ([1, 2], [1])  # nothing is tried again on it
    assert "unspecified launch failure" in (run / "log.txt").read_text()
    assert "zebra" not in ended.err + (run / "log.txt").read_text()
    assert (listed()["status"], listed()["rounds"]) == ("failed", 1)
    assert rounds_of(run) == ["round-0001"]
    assert ended_well(simulate("--resume", run), run, undisturbed)
    assert listed()["status"] == "finished"


# --- the keyboard, and a batch system's signal ---


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_round(simulate, listed, job, tmp_path, undisturbed, sent):
    run = tmp_path / "faults-1"
    arguments = [sys.executable, "-u", "-m", "simulations.cli", "simulate", str(job)]
    process = subprocess.Popen(
        [*arguments, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("Round 1 of 2"):
            process.send_signal(sent)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert err.count("\n") == 1, err
    assert err.startswith("consilia: stopped: ")
    assert f"--resume {run}" in err
    assert listed()["status"] == "stopped"
    assert listed()["rounds"] >= 1
    assert ended_well(simulate("--resume", run), run, undisturbed)


@pytest.mark.parametrize("place", ["encoder_for", "layout_bytes", "score_run", "write_report"])
def test_ctrl_c_before_and_after_the_rounds(
    simulate, command, job, tmp_path, monkeypatch, undisturbed, place
):
    def interrupt(*_):
        raise KeyboardInterrupt

    run = tmp_path / "faults-1"
    with monkeypatch.context() as patch:
        patch.setattr(simulation, place, interrupt)
        ended = simulate(job)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    if place == "encoder_for":
        assert ended.err == "consilia: stopped: nothing was written\n"
        assert not list(tmp_path.iterdir())
        return
    assert f"--resume {run}" in ended.err
    entry = json.loads(command("runs", "list", "--out", tmp_path, "--json").out)[0]
    assert entry["status"] == ("finished" if place == "write_report" else "stopped")
    assert ended_well(simulate("--resume", run.name), run, undisturbed)


def test_a_run_that_was_killed_is_not_shown_as_running(simulate, listed, job, tmp_path):
    assert simulate(job).code == 0
    run = tmp_path / "faults-1"
    with simulation.RunStore.open(run) as store:
        with RunHistory.at(tmp_path / "history.sqlite") as history:
            history.start_run(
                store.run,
                token=store.token,
                job_sha256=store.job.digest(),
                base_sha256=store.base_sha256,
                seed=1,
                rounds=ROUNDS,
            )
        assert listed()["status"] == "running"
    assert listed()["status"] == "stopped"
    assert f"--resume {run}" in listed()["reason"]


# --- what is on disk changes between two processes ---


def test_what_changed_between_two_processes(
    simulate, listed, failing, job, clip_folder, tmp_path, monkeypatch, undisturbed
):
    run, asked = tmp_path / "faults-1", []

    def second_round(kind, _):
        asked.append(kind)
        return OSError() if kind == "train" and asked.count("train") > 3 else None

    failing(second_round)
    assert simulate(job).code == 1
    failing(lambda *_: None)

    weights = clip_folder / "model.safetensors"
    original = weights.read_bytes()
    machine._encoder.cache_clear()  # a new process begins with an empty one
    try:
        weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        ended = simulate("--resume", run)
    finally:
        weights.write_bytes(original)
        machine._encoder.cache_clear()
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert "put that base back, or start a new run" in ended.line
    assert (listed()["status"], listed()["rounds"]) == ("failed", 1)

    folder = Path(load_job(job).data.folder)
    table = sorted(folder.glob("*/metadata.csv"))[0]
    original = table.read_bytes()
    with table.open(newline="", encoding="utf-8") as file:
        header, first, *rest = csv.reader(file)
    first[header.index("text")] += " again"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, first, *rest])
    ended = simulate("--resume", run)
    table.write_bytes(original)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert "are not those that the run began with" in ended.line

    history = tmp_path / "history.sqlite"
    history.rename(tmp_path / "away")
    ended = simulate("--resume", run)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert "history.sqlite does not know" in ended.line
    assert rounds_of(run) == ["round-0001"]
    (tmp_path / "away").replace(history)

    checkpoint = run / "checkpoints" / "round-0001" / "shared.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    ended = simulate("--resume", run)
    assert "Round 1 is damaged on disk and is done again" in ended.out
    assert ended_well(ended, run, undisturbed)
