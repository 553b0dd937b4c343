"""This machine, and whether a benchmark has it to itself."""

import hashlib
import importlib.metadata
import os
import platform
import re
import threading
import time
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.schema import Load, Machine

QUIET_SHARE = 0.9

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_LIBRARIES = ("torch", "transformers", "peft", "flwr", "ray", "numpy")
_SPIN_BYTES = 1 << 25


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> Machine:
    """Return what times on this machine depend on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(listed[1].split()) if listed else set()
    return Machine(
        processor=named[1].strip() if named else platform.processor() or platform.machine(),
        cores=cores(),
        flags=[flag for flag in _FLAGS if flag in present],
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        versions={"python": platform.python_version()} | _versions(),
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products in bfloat16."""
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & set(describe_machine().flags))


def spin_probe() -> float:
    """Return CPU time over wall time of one busy thread per core, a few hundredths of a second.

    Hashing a large block holds no lock, so on a quiet machine every thread has a core to itself
    and the answer is 1; the worst thread counts, because a step waits for its slowest thread.
    """
    block = bytes(_SPIN_BYTES)
    shares: list[float] = []

    def spin() -> None:
        wall, busy = time.perf_counter(), time.thread_time()
        hashlib.sha256(block).digest()
        shares.append((time.thread_time() - busy) / (time.perf_counter() - wall))

    threads = [threading.Thread(target=spin) for _ in range(cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(1.0, *shares)


class LoadWatch:
    """Probes the machine during a run; ``load`` sums up."""

    def __init__(self) -> None:
        self._before = _average()
        self._probes: list[float] = []

    def probe(self) -> None:
        """Look once how much of the machine is free."""
        self._probes.append(round(spin_probe(), 3))

    def load(self) -> Load:
        """Return what the probes found, of which there is at least one."""
        if not self._probes:
            self.probe()
        share = fmean(self._probes)
        return Load(
            average=(self._before, _average()),
            probes=self._probes,
            share=round(share, 3),
            contended=share < QUIET_SHARE,
        )


def _average() -> float:
    return round(os.getloadavg()[0], 2)
