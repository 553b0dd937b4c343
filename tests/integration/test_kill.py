"""Runs killed with SIGKILL at random moments and resumed end with the bits of an undisturbed one.

Slow: `make test-kill`. Every kill is a real process that runs the real command.
"""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

KILLS = 30
JOB = """
name = "kill"
seed = 5
rounds = 4
[data]
phantom_sites = 3
[train]
steps = 2
[aggregate]
fold_every = 2
[personalize]
steps = 2
[evaluate]
bootstrap = 100
baselines = ["local"]
gallery_queries = 0
"""


def command(*arguments):
    return [sys.executable, "-m", "simulations.cli", "simulate", *map(str, arguments)]


def sha256_of(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["adapter_sha256"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job = folder / "kill.toml"
    job.write_text(JOB, encoding="utf-8")
    start = time.monotonic()
    subprocess.run(command(job, "--out", folder / "runs"), check=True, capture_output=True)
    return job, sha256_of(folder / "runs" / "kill-5"), time.monotonic() - start


@pytest.mark.slow
def test_two_runs_of_one_job_have_one_sha256(undisturbed, tmp_path):
    job, expected, _ = undisturbed
    subprocess.run(command(job, "--out", tmp_path), check=True, capture_output=True)
    assert sha256_of(tmp_path / "kill-5") == expected


@pytest.mark.slow
def test_killed_and_resumed_runs_end_with_the_same_bits(undisturbed, tmp_path):
    job, expected, seconds = undisturbed
    luck = random.Random(11)
    ends, killed_in = [], []
    for number in range(KILLS):
        out = tmp_path / str(number)
        run = out / "kill-5"
        process = subprocess.Popen(
            command(job, "--out", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(luck.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_in.append(len(list(run.glob("checkpoints/round-*"))))
        # Killed before the run began: there is nothing to resume, the same command starts it.
        begun = (run / "manifest.json").exists()
        again = command("--resume", run) if begun else command(job, "--out", out / "again")
        subprocess.run(again, check=True, capture_output=True, timeout=600)
        ends.append(sha256_of(run if begun else out / "again" / "kill-5"))
    assert set(ends) == {expected}, f"killed with so many rounds committed: {killed_in}"
    assert len(set(killed_in)) >= 3, "the kills did not spread over the run"
