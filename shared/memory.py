"""How this process treats memory that is free again: kept for the next step, given back between.

Only glibc can be told; with other C libraries both functions do nothing.
"""

import contextlib
import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_LARGEST_TRIM: Final = 2**31 - 1  # it is an int
_LARGEST_MMAP: Final = 32 * 2**20  # glibc takes no more


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is needed next, up to 2 GiB.

    Every step of training frees all its activations and needs as many again. By itself glibc
    gives them back to the system in between, which maps and clears each page anew: 10 to 15 %
    of the time of a training step on a CPU, 60,000 page faults a round at the small geometry of
    the benchmarks.

    Threads started from now on share one heap. Each would get one of its own otherwise, made of
    pieces of 64 MiB that go back to the system as soon as they are free, whatever is said here;
    a simulation's sites train on such a thread (12,000 page faults a round of 10 sites).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_TRIM)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
        libc.mallopt(_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Let glibc give pages that nobody uses back to the system.

    The heap is fragmented as batches of ever other lengths come and go: without this 50 rounds
    took 25 % more memory than 5. Between cohorts only, never between steps.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
