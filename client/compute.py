"""What a process settles before its first numbers: threads, memory, deterministic algorithms.

A site's bits depend on it, so an agent's process and a simulation settle the same.
"""

import contextlib
import ctypes
import functools
import os

import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from shared.memory import keep_freed_memory


def settle_process(threads: int) -> None:
    """Fix threads and algorithms of this process.

    Args:
        threads: For numerical work.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    # NumPy works with one: more would keep torch's from working while answers are summed, and its
    # decompositions round alike on every machine.
    threadpool_limits(1, user_api="blas")
    # As torch.use_deterministic_algorithms, without loading inductor, which compiled.py does.
    torch.set_deterministic_debug_mode("warn")
    # Only a help for finding reads of what was never written, and 5 % of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuBLAS is only deterministic with a fixed workspace; it reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def give_threads_back() -> None:
    """End the threads that wait for this thread's next numerical work; it gets new ones then.

    Every thread that has worked on tensors keeps a team of its own. When a process has more of
    them than cores, GNU's OpenMP lets all teams sleep between two pieces of work instead of
    looking out for the next one, and waking up takes longer than most pieces of a training
    step: two threads were no faster than one. So a thread gives its team back before another
    one works. How many threads it works with, and so the bits of a result, stays as it was.
    """
    for library in _gnu_openmp():
        with contextlib.suppress(AttributeError):  # older than OpenMP 5.0
            library.omp_pause_resource_all(_SOFTLY)


_SOFTLY = 1
"""``omp_pause_soft``: what was set stays."""


@functools.cache
def _gnu_openmp() -> list[ctypes.CDLL]:
    """Return GNU's OpenMP libraries of this process; others do not count their threads."""
    found = ThreadpoolController().select(user_api="openmp").lib_controllers
    return [each.dynlib for each in found if each.prefix == "libgomp"]
