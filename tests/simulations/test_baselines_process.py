"""The baselines' process starts before the records are there, and waits for the word."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared.config import JobConfig, LoraConfig, ModelConfig
from shared.errors import ConsiliaError
from shared.model.encoder import DualEncoder
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


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("workers", [1, 2])
def test_its_share_of_the_machine_is_free_once_it_has_ended(
    listener, tmp_path, monkeypatch, small_job, workers, cores
) -> None:
    monkeypatch.setattr(baselines_process.os, "cpu_count", lambda: cores)
    with BaselinesProcess(tmp_path, _with_workers(small_job, workers)) as process:
        assert process.threads == 1  # there are two processes
        process.records_are_there()
        process.wait()
        assert process.threads == min(workers, cores)


def test_twice_the_threads_give_the_same_bits() -> None:
    encoder = DualEncoder.load(ModelConfig(), LoraConfig())
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (64, 96, 96, 1), dtype=np.uint8))
    tokens = encoder.tokenize([f"effusion {number}, nodule {number % 7}" for number in range(64)])
    before, found = torch.get_num_threads(), []
    with torch.inference_mode():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((encoder.encode_images(pixels), encoder.encode_texts(tokens)))
    torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


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
