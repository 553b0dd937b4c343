"""What a process settles before its first numbers: threads, memory, deterministic algorithms.

A site's bits depend on it, so an agent's process and a simulation settle the same.
"""

import os

import torch
from threadpoolctl import threadpool_limits

from shared.memory import keep_freed_memory


def settle_process(threads: int) -> None:
    """Fix threads and algorithms of this process.

    Args:
        threads: For numerical work.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    # NumPy's too: decompositions may round otherwise, and its threads keep torch's from working.
    threadpool_limits(threads, user_api="blas")
    # As torch.use_deterministic_algorithms, without loading inductor, which compiled.py does.
    torch.set_deterministic_debug_mode("warn")
    # Only a help for finding reads of what was never written, and 5 % of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuBLAS is only deterministic with a fixed workspace; it reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
