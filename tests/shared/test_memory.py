"""What a process does with memory that is free again, on every thread."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, threading
import numpy as np
from shared.memory import keep_freed_memory

def step():
    kept = [np.ones(12 * 2**20, dtype=np.uint8) for _ in range(12)]

def faults():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    keep_freed_memory()
faults()
thread = threading.Thread(target=faults)
thread.start()
thread.join()
"""


def faults(what):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_what_a_step_frees_serves_the_next_step_on_every_thread():
    main, thread = faults("as it is")
    assert min(main, thread) > 1000, "nothing to be gained here; the test shows nothing"
    main, thread = faults("keep")
    assert main < 100
    assert thread < 100
