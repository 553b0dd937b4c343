"""A device that is gone, or too small: what is said, and that nothing is tried in vain."""

import logging

import pytest
import torch

from client import fitting
from client.device_faults import is_out_of_memory, lost_device
from client.release import REFUSALS
from client.training import SiteTask, fresh_adapter, in_halves, train_local, train_shared
from shared.adapter import SharedAdapter
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from simulations.baselines import train_centralised

TAIL = "\nCUDA kernel errors might be asynchronously reported; record of Jane"
LOST = (
    (torch.AcceleratorError, "CUDA error: unspecified launch failure"),
    (torch.AcceleratorError, "CUDA error: device-side assert triggered"),
    (torch.AcceleratorError, "CUDA error: an illegal memory access was encountered"),
    (torch.AcceleratorError, "CUDA error: uncorrectable ECC error encountered"),
    (torch.AcceleratorError, "CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    (RuntimeError, "CUDA error: unknown error"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    (RuntimeError, "Unable to determine the device handle: GPU is lost"),
)
OTHERS = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    ValueError("unspecified launch failure"),
)


@pytest.fixture(scope="module")
def encoder(small_job):
    return DualEncoder.load(small_job.model, small_job.lora)


@pytest.fixture
def breaking(monkeypatch):
    """Let every step fail with an error; returns how many were begun."""

    def let(error):
        begun = []

        def encode(*_):
            begun.append(1)
            raise error

        monkeypatch.setattr(fitting, "encode", encode)
        return begun

    return let


@pytest.mark.parametrize(("kind", "text"), LOST)
def test_a_lost_device_is_known_by_the_runtimes_fixed_words(kind, text) -> None:
    words = lost_device(kind(text + TAIL))
    assert words is not None
    assert words in text
    assert not is_out_of_memory(kind(text))


@pytest.mark.parametrize("error", OTHERS)
def test_other_errors_are_not_taken_for_one(error) -> None:
    assert lost_device(error) is None
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("kind", [torch.AcceleratorError, torch.OutOfMemoryError, RuntimeError])
def test_too_little_memory_is_not_a_lost_device(kind) -> None:
    error = kind("CUDA error: out of memory")
    assert is_out_of_memory(error)
    assert lost_device(error) is None


def test_nothing_is_tried_again_on_it_and_every_site_is_told(
    encoder, site_of, small_job, breaking, caplog
) -> None:
    begun = breaking(torch.AcceleratorError(LOST[0][1] + TAIL))
    start = SharedAdapter(fresh_adapter(encoder.layout, 1).factors)
    tasks = [SiteTask(site_of(name), start, ("B",), 5, 1) for name in "abcd"]
    with caplog.at_level(logging.WARNING):
        found = train_shared(encoder, tasks, small_job)
    assert len(begun) == 1
    assert [result.reason for result in found] == ["device-lost"] * 4
    for words in ("unspecified launch failure", "nvidia-smi", "start again"):
        assert words in str(found[0])
        assert words in caplog.text
    assert "Jane" not in str(found[0]) + caplog.text
    assert found[0].reason in REFUSALS


def test_a_baseline_is_not_left_out_because_of_it(encoder, site_of, small_job, breaking) -> None:
    """A site that cannot learn has no baseline for good; one whose device is gone gets one."""
    breaking(torch.AcceleratorError(LOST[0][1]))
    with pytest.raises(TrainingError) as error:
        train_local(encoder, [(site_of(), 3)], small_job)
    assert error.value.reason == "device-lost"
    with pytest.raises(torch.AcceleratorError):  # what trains one by one says so itself
        train_centralised(encoder, [site_of()], small_job, 1)


def test_halving_hands_other_errors_on() -> None:
    def fail(_):
        raise OTHERS[0]

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        in_halves(fail, [1, 2])
