"""This machine: device, threads, versions and memory; everything about it that a run records."""

import functools
import importlib.metadata
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from client.compute import settle_process
from client.device_faults import DEVICE_LOST
from server.events import Event
from shared.config import JobConfig
from shared.errors import ConfigError, TrainingError
from shared.model.encoder import DualEncoder
from simulations.startup import loading

_RECORDED = ("torch", "transformers", "peft", "flwr", "numpy", "safetensors")


def settle(job: JobConfig) -> str:
    """Fix what results depend on, threads and algorithms, and return the device.

    Raises:
        ConfigError: If the job asks for CUDA and there is none.
    """
    settle_process(job.simulation.threads)
    wanted = job.simulation.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("simulation.device = 'cuda': this machine has no CUDA device; use 'cpu'")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return devices(wanted)[0]


@contextmanager
def termination_like_interrupt() -> Iterator[None]:
    """Let a termination signal, as batch systems send it, stop a run as cleanly as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def devices(device: str) -> list[str]:
    """Return all devices that cohorts are spread over: every GPU of this machine, or the CPU."""
    if device != "cuda":
        return [device]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


class DeviceWatch:
    """Ends a run when a device of this machine is gone: its sites must not just be missing.

    Args:
        show: Told every event first.
        run: The run directory.
        rounds: Rounds of the job.
    """

    def __init__(self, show: Callable[[Event], None], run: Path, rounds: int) -> None:
        self._show, self._run, self._rounds = show, run, rounds
        self._committed = 0

    def __call__(self, event: Event) -> None:
        """Take notice of an event.

        Raises:
            TrainingError: ``device-lost``, with what is kept and how to go on.
        """
        self._show(event)
        if event.kind == "run-resumed":
            self._committed = int(str(event.values["committed"]))
        elif event.kind == "round-committed" and event.round is not None:
            self._committed = event.round
        elif event.kind == "site-dropped" and event.values.get("reason") == DEVICE_LOST:
            raise TrainingError(
                DEVICE_LOST,
                f"the device that trained {event.site} stopped working, and this process cannot "
                f"use it any more; {self._committed} of {self._rounds} rounds are committed and "
                f"intact; check the device, then go on with --resume {self._run}",
            )


@functools.lru_cache(maxsize=16)
def _encoder(job_text: str, device: str) -> DualEncoder:
    job = JobConfig.model_validate_json(job_text)
    first = _encoder.cache_info().currsize == 0  # nothing has been done that could leave garbage
    with loading() if first else nullcontext():
        return DualEncoder.load(job.model, job.lora, device)


def encoder_for(job: JobConfig, device: str) -> DualEncoder:
    """Return the job's encoder; all sites of a process share one frozen base."""
    model = job.model.model_copy(update={"bases": {}})  # those of other sites, ``JobConfig.at``
    part = job.model_copy(update={"name": "encoder", "seed": 0, "rounds": 1, "model": model})
    return _encoder(part.model_dump_json(include={"name", "model", "lora"}), device)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process and of those it has waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) * unit


def versions() -> dict[str, str]:
    """Return the versions that a run's bits depend on."""
    found = {name: importlib.metadata.version(name) for name in _RECORDED}
    return {"consilia": importlib.metadata.version("consilia"), **found} | {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
