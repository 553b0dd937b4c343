"""Every benchmark at its smallest: what it writes is a report, and its gates hold.

What was measured is never looked at: times of a test machine say nothing.
"""

import importlib.util
import json
import sys

import pytest
import torch

from benchmarks import (
    agreement,
    centralised,
    flower_ray,
    gpu,
    growth,
    loading,
    peak,
    plain,
    plain_loop,
    prefix_cache,
    round_overhead,
    rounds,
)
from benchmarks.fit import ALL_LINEAR, ATTENTION, LocalFit
from benchmarks.geometry import SMOKE
from benchmarks.records import random_sites
from benchmarks.schema import Report
from benchmarks.work import RoundWork
from benchmarks.workers import plain_workers

FIT = LocalFit(batch_size=4, steps=2)


def written(session, folder):
    """Finish a session; return its exit code and the report that it wrote."""
    code = session.finish(folder)
    (path,) = folder.glob("*.json")
    assert json.loads(path.read_text())["format"] == 1
    return code, Report.model_validate_json(path.read_bytes())


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Carry out rounds here instead of in a child; returns what was wanted."""
    wanted = []

    def carry_out(this):
        wanted.append(this)
        return rounds.run_rounds(this, tmp_path / f"run-{len(wanted)}")

    for module in (growth, round_overhead):
        monkeypatch.setattr(module, "rounds_in_child", carry_out)
    return wanted


def test_plain_loop(session_of, tmp_path):
    session = session_of("plain_loop", repeats=2)
    plain_loop.measure(session, SMOKE, plain_loop.CASES["smoke"])
    code, report = written(session, tmp_path)
    (row,) = report.rows
    assert code == 0
    assert [arm.name for arm in row.arms] == list(plain_loop.CASES["smoke"][0].arms)
    assert all(len(arm.wall) == len(arm.cpu) == 2 for arm in row.arms)
    assert [gate.limit for gate in row.gates] == [1e-4, 2e-3]
    assert all(gate.passed and gate.value <= gate.limit for gate in row.gates)
    assert {"engine fp32", "engine bf16"} <= {r.name.rsplit(" / ")[1] for r in row.ratios}


@pytest.mark.parametrize("targets", [ATTENTION, ALL_LINEAR])
def test_the_engine_learns_what_the_plain_loop_learns(base, targets):
    for gate in agreement.agreement(base, SMOKE, targets, batch_size=4):
        assert gate.passed
        assert gate.value > 0  # the two are not the same code


def test_the_gate_sees_another_optimiser(base, monkeypatch):
    monkeypatch.setattr(plain, "BETAS", (0.9, 0.9))
    assert not any(g.passed for g in agreement.agreement(base, SMOKE, ATTENTION, batch_size=4))


def test_the_gate_sees_other_pictures(base, monkeypatch):
    original = agreement.plain_records

    def darker(loop, sites):
        return [plain.PlainRecords(r.pixels - 0.1, r.ids) for r in original(loop, sites)]

    monkeypatch.setattr(agreement, "plain_records", darker)
    assert not any(g.passed for g in agreement.agreement(base, SMOKE, ATTENTION, batch_size=4))


def test_a_failed_gate_is_an_exit_code(session_of, base, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "LIMIT", 0.0)
    session = session_of("plain_loop")
    case = plain_loop.Case(2, FIT, (plain_loop.ONE_THREAD, *plain_loop._ENGINE))
    plain_loop.measure(session, SMOKE, [case])
    code, report = written(session, tmp_path)
    assert code == 1
    assert not report.rows[0].gates[0].passed


def test_centralised(session_of, tmp_path):
    session = session_of("centralised")
    centralised.measure(session, SMOKE, centralised.CASES["smoke"])
    _, report = written(session, tmp_path)
    assert [row.name.split()[-1] for row in report.rows] == ["float32", "bfloat16"]
    assert report.rows[0].arms[1].name == "centralised, batch 12"
    assert report.rows[0].ratios[0].target.bound == "at most"


def test_prefix_cache(session_of, tmp_path):
    session = session_of("prefix_cache")
    prefix_cache.measure(session, [prefix_cache.SMOKE_CASE])
    _, report = written(session, tmp_path)
    assert {arm.name for arm in report.rows[0].arms} == {"with cache", "without"}
    assert report.rows[0].numbers["operations without / with cache"] > 1


def test_loading(session_of, tmp_path):
    session = session_of("loading", repeats=2)
    loading.measure(session, [loading.SMOKE_CASE])
    _, report = written(session, tmp_path)
    (row,) = report.rows
    (share,) = row.ratios
    assert 0 < share.low <= share.value <= share.high < 1
    assert (share.target.bound, share.target.value) == ("at most", 0.05)


def test_loading_sees_what_is_slow_in_it(base, monkeypatch):
    """Pictures that take a while to read are in the share, and nothing else is."""
    job = loading.benchmark_job(base, FIT, ALL_LINEAR)
    loop = loading.EngineLoop.load(job)
    sites = random_sites(SMOKE, 2, FIT.batch_size * FIT.steps)
    now = [0.0]
    monkeypatch.setattr(loading.time, "perf_counter", lambda: now[0])
    original = loading.encoding.pixels_of

    def slow(prepared, rows):
        now[0] += 1.0
        return original(prepared, rows)

    monkeypatch.setattr(loading.encoding, "pixels_of", slow)
    with loading.watched(loop.encoder) as watch:
        loop.train_round(sites, loading.random_start(loop.encoder.layout))
        watch.lap()
    assert watch.laps == [2.0 * FIT.steps]  # two sites


def test_peak(session_of, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.flops.CPU_SIZES", (64,))
    session = session_of("peak")
    peak.measure(session, SMOKE, sites=2, fit=FIT)
    _, report = written(session, tmp_path)
    shares = {r.name: r for r in report.rows[0].ratios}
    assert len(shares) == 3
    assert all(0 < share.value < 1 for share in shares.values())


def test_growth(session_of, tmp_path, in_process):
    session = session_of("growth", repeats=2)
    growth.measure(session, SMOKE, sites=(2, 3), rounds=(2, 3))
    _, report = written(session, tmp_path / "out")
    assert [(w.sites, w.rounds) for w in in_process] == [(2, 3), (3, 3), (2, 2), (2, 3)]
    by_sites, by_rounds = report.rows
    assert [len(arm.wall) for arm in by_sites.arms] == [2, 2]
    assert by_sites.numbers["adapter and optimizer state of a site, KiB"] == 64
    assert by_rounds.ratios[0].name == "peak memory, 3 rounds / 2 rounds"


def test_round_overhead(session_of, tmp_path, in_process):
    session = session_of("round_overhead", repeats=2)
    round_overhead.measure(session, SMOKE, {3: 0.2})
    _, report = written(session, tmp_path / "out")
    (row,) = report.rows
    whole, training = (arm.wall for arm in row.arms)
    assert len(whole) == 2
    assert all(0 < part < all_of_it for part, all_of_it in zip(training, whole, strict=True))


def test_without_ray_it_says_so(session_of, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a)
    )
    session = session_of("flower_ray")
    flower_ray.measure(session, flower_ray.JOB)
    code, report = written(session, tmp_path)
    assert code == 0
    assert not report.rows
    assert "make setup-ray" in report.not_measured[0].reason


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 0
    report = Report.model_validate_json((tmp_path / "gpu.json").read_bytes())
    assert [m.reason for m in report.not_measured] == ["no CUDA device here"] * 2
    assert "vit-l14 on a GPU: not measured" in capsys.readouterr().out


def test_the_gpu_rows_on_a_cpu(session_of, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.flops.CPU_SIZES", (64,))
    session = session_of("gpu")
    gpu.measure(session, gpu.Case(SMOKE, FIT, few=2, many=3), device="cpu")
    _, report = written(session, tmp_path)
    assert [row.name.split(",")[1] for row in report.rows] == [
        " 2 sites x 2 steps x batch 4",
        " 3 sites x 2 steps x batch 4",
    ]
    assert "CUDA graphs need a CUDA device" in report.not_measured[0].reason


@pytest.mark.gpu
def test_the_gpu_rows_on_a_gpu(session_of, tmp_path):
    session = session_of("gpu")
    gpu.measure(session, gpu.Case(SMOKE, FIT, few=2, many=3))
    _, report = written(session, tmp_path)
    assert not report.not_measured


@pytest.mark.slow
def test_workers_do_the_round_between_them(base):
    work = RoundWork(base, SMOKE, 3, FIT)
    with plain_workers(work, 2, torch.float32) as one_round:
        assert one_round() > 0
        assert one_round() > 0


@pytest.mark.slow
def test_flower_with_ray(session_of, tmp_path):
    pytest.importorskip("ray")
    session = session_of("flower_ray")
    flower_ray.measure(session, flower_ray.Case(SMOKE, sites=3, fit=FIT, rounds=3))
    _, report = written(session, tmp_path)
    (row,) = report.rows
    assert [arm.name.rsplit(", ", 1)[1] for arm in row.arms] == ["whole run"] * 3 + [
        "steady round"
    ] * 3
    assert all(gate.passed for gate in row.gates)
