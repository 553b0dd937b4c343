"""The baselines' process starts before the records are there, and waits for the word."""

import io
import sys
from types import SimpleNamespace

import pytest

from shared.config import JobConfig
from shared.errors import ConsiliaError
from simulations import baselines, baselines_process
from simulations.baselines import run_baselines
from simulations.baselines_process import RECORDS_THERE, BaselinesProcess


@pytest.fixture
def listener(tmp_path, monkeypatch):
    """A stand-in for the process that writes down what it is told."""
    program = tmp_path / "listener"
    program.write_text('#!/bin/sh\ncat > "$4/heard"\n')  # after -m, module and --with-parent
    program.chmod(0o755)
    monkeypatch.setattr(baselines_process.sys, "executable", str(program))
    return tmp_path / "heard"


def _with_workers(job: JobConfig, workers: int) -> JobConfig:
    own = job.simulation.model_copy(update={"workers": workers})
    return job.model_copy(update={"simulation": own})


@pytest.mark.parametrize("workers", [1, 2])
def test_the_process_hears_when_the_records_are_there(
    listener, tmp_path, small_job, workers
) -> None:
    job = _with_workers(small_job, workers)
    with BaselinesProcess(tmp_path, job) as process:
        assert not listener.exists() or listener.read_bytes() == b""
        process.records_are_there()
        process.wait()
    assert listener.read_bytes() == RECORDS_THERE


def test_a_process_that_is_done_already_need_not_hear(tmp_path, monkeypatch, small_job) -> None:
    program = tmp_path / "done"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setattr(baselines_process.sys, "executable", str(program))
    with BaselinesProcess(tmp_path, _with_workers(small_job, 2)) as process:
        process._process.wait()
        process.records_are_there()
        process.wait()


def test_no_record_is_read_before_the_word(tmp_path, monkeypatch, small_job) -> None:
    monkeypatch.setattr(baselines, "encoder_for", lambda *_: None)
    monkeypatch.setattr(
        baselines, "load_records", lambda *_: pytest.fail("read before they were there")
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    settings = [SimpleNamespace(name="a", state=tmp_path)]
    with pytest.raises(ConsiliaError, match="before its records"):
        run_baselines(tmp_path, small_job, settings, baselines._await_records)
