"""Memory: 200 sites in 3 GiB, and 50 rounds without growth. Slow: `make test-slow`."""

import json
import subprocess
import sys

import pytest

TINY = [
    "--set", "train.steps=1", "--set", "personalize.steps=1", "--set", "evaluate.baselines=[]",
    "--set", "evaluate.bootstrap=100", "--set", "evaluate.gallery_queries=0",
]  # fmt: skip


def results_of(out, *arguments):
    command = [sys.executable, "-m", "simulations.cli", "simulate", "--out", str(out), "--json"]
    done = subprocess.run([*command, *arguments, *TINY], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_200_sites_fit_in_3_gib(tmp_path):
    results = results_of(tmp_path, "--sites", "200", "--rounds", "1")
    assert len(results["sites"]) == 200
    assert results["peak_memory_bytes"] < 3 * 2**30


@pytest.mark.slow
def test_memory_does_not_grow_with_rounds(tmp_path):
    few = results_of(tmp_path / "few", "--sites", "3", "--rounds", "5")
    many = results_of(tmp_path / "many", "--sites", "3", "--rounds", "50")
    assert many["peak_memory_bytes"] < 1.05 * few["peak_memory_bytes"]
