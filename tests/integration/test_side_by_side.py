"""Several commands at once with one ``--out``: one folder of runs, one history."""

import json
import os
import subprocess
import sys

import pytest

from server.history import RunHistory
from server.job_text import to_toml


@pytest.mark.slow
def test_three_commands_at_once_share_a_history(federation_of, small_job, tmp_path) -> None:
    federation = federation_of(("paired", "paired"))
    tree = small_job.model_dump(mode="json") | {"rounds": 6}
    tree["data"]["folder"] = str(federation.data)
    tree["train"]["steps"] = 1
    tree["personalize"]["method"] = "none"
    tree["evaluate"] |= {"bootstrap": 100, "baselines": [], "minimum_count": 1}
    tree["simulation"] |= {"workers": 1, "device": "cpu"}
    (tmp_path / "job.toml").write_text(to_toml(type(small_job).model_validate(tree)))
    environment = {k: v for k, v in os.environ.items() if k != "CONSILIA_HISTORY"}
    command = [sys.executable, "-m", "simulations.cli", "simulate", str(tmp_path / "job.toml")]
    runs = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "runs"), "--set", f"seed={seed}"],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in (1, 2, 3)
    ]
    said = [run.communicate(timeout=110)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    with RunHistory.at(tmp_path / "runs" / "history.sqlite") as history:
        assert sorted(run.name for run in history.runs()) == ["small-1", "small-2", "small-3"]
        assert {len(history.committed_rounds(run.name)) for run in history.runs()} == {6}
    for seed in (1, 2, 3):
        results = json.loads((tmp_path / "runs" / f"small-{seed}" / "results.json").read_text())
        assert results["status"] == "finished"
