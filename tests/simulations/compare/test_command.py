"""``consilia compare`` from the command line: what it writes, what it refuses, how it stops."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from importlib.resources import files
from pathlib import Path

import pytest

from shared.config import load_job
from shared.errors import QuorumError
from simulations.compare import run as running
from simulations.compare.model import MethodComparison
from simulations.compare.page import render


@pytest.fixture
def compare(command, job_file, tmp_path):
    def run(*arguments, methods="fedavg,ffa+finetune", job=job_file):
        given = ("--methods", methods, "--jobs", 1, "--out", tmp_path / "out", *arguments)
        return command("compare", job, *given)

    return run


def test_writes_a_table_a_page_and_files_and_says_what_to_do_next(compare, tmp_path):
    page = tmp_path / "table.md"
    ended = compare("--seeds", 2, "--rates", "0.01", "--markdown", page)
    assert ended.code == 0, ended.err
    assert "has the best own test" in ended.out
    assert all(name in ended.out for name in ("ffa+finetune", "local-only", "centralised", "base"))
    assert ended.out.splitlines()[-1].startswith("Next     open ")
    out = tmp_path / "out"
    found = MethodComparison.model_validate_json((out / "comparison.json").read_bytes())
    names = ["fedavg", "ffa+finetune", "local", "centralised", "base"]
    assert [row.name for row in found.rows] == names
    assert (found.seeds, found.tuning_seed, found.sites) == ([1, 2], None, ["north", "south"])
    with (out / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    own = {line["method"]: line for line in lines if line["measure"] == "own"}
    assert set(own) == set(names)
    for row in found.rows:
        assert float(own[row.name]["mean"]) == row.cells["own"].value
        assert float(own[row.name]["seed_2"]) == row.cells["own"].by_seed[1]
    text = page.read_text()
    assert text.startswith("```console\n$ consilia compare ")
    assert text.count("\n| ") == 6
    assert f"**{found.best}**" in text
    html = (out / "comparison.html").read_text()
    assert html == render(found)
    check_page(html)


def check_page(html):
    """One file: nothing is fetched, every method stands in it, no placeholder is left."""
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", html)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", html)
    words = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bnan\b|undefined|\{\{|\{%", words)
    for name in ("fedavg", "ffa+finetune", "local-only", "centralised", "base, untouched"):
        assert words.count(name) >= 3
    assert words.count("<figure") == 2


def test_one_seed_prints_dashes_for_intervals(compare, tmp_path):
    ended = compare("--seeds", 1, "--rates", "0.01")
    assert ended.code == 0
    assert "One seed has no interval" in ended.out
    assert "--seeds 3 or more" in ended.out.splitlines()[-1]
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "one seed" in html
    check_page(html)


def test_a_comparison_with_an_attacked_run_says_so_and_ends_with_3(compare):
    attack = ("--set", 'attack.sites={north = "nan"}', "--set", "aggregate.quorum=1")
    ended = compare("--seeds", 1, "--rates", "0.01", *attack, methods="fedavg")
    assert ended.code == 3, ended.err
    assert re.search(r"fedavg: seed 1: 2 of 4\s+contributions were not admitted", ended.out)


def test_json_is_one_object_and_nothing_else(compare):
    ended = compare("--seeds", 1, "--rates", "0.01", "--json")
    assert MethodComparison.model_validate(json.loads(ended.out)).schema_version == 1


def test_names_of_rows_are_escaped(compare, tmp_path):
    compare("--seeds", 1, "--rates", "0.01", methods="fedavg")
    found = MethodComparison.model_validate_json((tmp_path / "out/comparison.json").read_bytes())
    hostile = found.model_copy(update={"name": "<b>x</b>", "sentences": ["<i>a</i>"]})
    page = render(hostile)
    assert "<b>x</b>" not in page
    assert "<i>a</i>" not in page


BAD = {
    "unknown rule": (["--methods", "fedavgg"], "did you mean 'fedavg'?"),
    "unknown personalization": (["--methods", "fedavg+duo"], "did you mean 'duet'?"),
    "no method": (["--methods", ""], "expected at least one rule"),
    "no seeds": (["--seeds", "0"], "--seeds 0: expected 1 to"),
    "negative seeds": (["--seeds", "-2"], "--seeds -2: expected 1 to"),
    "seeds that are none": (["--seeds", "many"], "'many' is not a valid int"),
    "rates that are none": (["--rates", "fast"], "'fast' is no learning rate"),
    "no jobs": (["--jobs", "0"], "0 is not in the range x>=1"),
    "a key that is none": (["--set", "train.rate=1"], "unknown key 'rate'"),
    "no data": (["--data", "nowhere"], "nowhere"),
    "a site that is none": (["--set", 'data.sites=["west"]'], "west"),
    "does not fit": (["--set", "aggregate.fold_every=2"], "fedavg: cannot run with"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_before_anything_is_run(compare, tmp_path, monkeypatch, name):
    monkeypatch.setattr(running, "carry_out_task", lambda _: pytest.fail("something was run"))
    arguments, says = BAD[name]
    ended = compare(*arguments)
    assert ended.code == 2, ended.err
    assert says in ended.line
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_comparison_is_refused(compare, tmp_path, monkeypatch):
    compare("--seeds", 1, "--rates", "0.01", methods="fedavg")
    monkeypatch.setattr(running, "carry_out_task", lambda _: pytest.fail("something was run"))
    ended = compare("--set", "rounds=3")
    assert ended.code == 2
    assert "holds a comparison of another job" in ended.line
    (tmp_path / "file").write_text("")
    assert "is a file" in compare("--out", tmp_path / "file").line


def test_a_missing_job_and_a_job_that_is_none(compare, tmp_path):
    assert "no such job file" in compare(job=tmp_path / "none.toml").line
    (tmp_path / "bad.toml").write_text("rounds = ")
    assert "not valid TOML" in compare(job=tmp_path / "bad.toml").line


def test_ctrl_c_says_how_to_go_on(compare, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "carry_out_task", interrupted)
    ended = compare()
    assert ended.code == 1
    assert ended.line.startswith("consilia: stopped: ")
    assert "go on with the same command" in ended.line


JOBS = sorted(
    path.name
    for path in Path(str(files("simulations") / "jobs")).iterdir()
    if path.name.startswith("compare-")
)


@pytest.mark.parametrize("name", JOBS)
def test_the_comparison_jobs_are_read_and_their_methods_fit(name, command, tmp_path, monkeypatch):
    path = Path(str(files("simulations") / "jobs" / name))
    job = load_job(path)
    assert f"{job.name}.toml" == name
    command_line = r"^#\s+consilia compare (\S+) --methods (\S+).* --seeds 5"
    (line,) = re.findall(command_line, path.read_text(), re.MULTILINE)
    assert line[0].endswith(name)

    def reached(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_prepare", reached)
    ended = command("compare", path, "--methods", line[1], "--out", tmp_path / "out")
    assert ended.line.startswith("consilia: stopped: "), ended.err


@pytest.mark.slow
def test_two_processes_two_methods_two_seeds_and_an_interruption(job_file, tmp_path):
    """The real command: stopped half-way, then the same command again, against one that was not."""

    def start(out):
        arguments = [job_file, "--methods", "fedavg,ffa+duet", "--seeds", "2", "--jobs", "2"]
        command = [sys.executable, "-m", "simulations.cli", "compare", *map(str, arguments)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / out)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    stopped = start("cut")
    runs, deadline = tmp_path / "cut" / "runs", time.monotonic() + 300
    while len(list(runs.glob("*/*/scores.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 1
    assert said.splitlines()[-1].startswith("consilia: stopped: ")
    assert "Traceback" not in said
    tables = []
    for out in ("cut", "whole"):
        process = start(out)
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        found = json.loads((tmp_path / out / "comparison.json").read_text())
        for row in found["rows"]:
            for measure in ("seconds", "bytes_up", "bytes_down"):  # of a resumed run, what is left
                row["cells"].pop(measure, None)
        tables.append(found["rows"])
    assert tables[0] == tables[1]


def test_a_grid_that_diverges_everywhere_is_said_in_the_table_and_on_the_page(
    compare, tmp_path, monkeypatch
):
    real = running.simulate

    def diverges(folder, job, console):
        if job.aggregate.rule == "ffa":
            raise QuorumError("round 1: 0 of 2 sites (north: loss-not-finite)")
        return real(folder, job, console)

    monkeypatch.setattr(running, "simulate", diverges)
    ended = compare("--seeds", 1, "--rates", "0.01,0.02", methods="fedavg,ffa")
    words = "diverged at every rate (0.01, 0.02)"
    assert words in " ".join(ended.out.split())
    assert ended.code == 0  # it is a finding, like any other row
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert words in page
    found = MethodComparison.model_validate_json((tmp_path / "out/comparison.json").read_bytes())
    row = next(row for row in found.rows if row.name == "ffa")
    assert (row.rate, row.cells) == (None, {})
    assert f'"{words}"' in (tmp_path / "out" / "comparison.json").read_text()
