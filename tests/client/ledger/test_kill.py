"""A process that is killed between noise and ledger, or anywhere else, never counts too little."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.audit import AuditLog
from client.audit_check import verify
from client.ledger import Population, PrivacyLedger, Release
from client.privacy_policy import Terms
from shared.privacy.accountant import Spend

ROOT = Path(__file__).parents[3]
TERMS = Terms(epsilon=1e3, run_epsilon=1e3, delta=1e-5, clip=1.0, noise=0.5)
SPEND = Spend(sampling=1, noise=50.0, steps=3)


def site(folder):
    ledger = PrivacyLedger(folder / "privacy", AuditLog(folder / "audit.jsonl"))
    ledger.enrol(Population("chest", "d" * 64, ["one", "two"]))
    return ledger


def release(number):
    return Release("chest", "study", "run", number, 1, "local", "d" * 64, SPEND, 1.0)


def rounds(folder, count, *, ledger_first=True):
    """What a site does: noise, ledger, release."""
    import numpy as np

    from shared.privacy.mechanism import local_grid, noised

    ledger = site(folder)
    grid = local_grid(8, 1.0, 50.0)
    for _ in range(count):
        number = len(ledger.entries()) + 1
        noised(np.zeros(8), grid)
        if ledger_first:
            ledger.spend(release(number), TERMS)
        descriptor = os.open(folder / "released", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, b"x")
        os.close(descriptor)
        if not ledger_first:
            ledger.spend(release(number), TERMS)


def counted_and_released(folder):
    """Open the ledger after a kill; it must open."""
    counted = len(site(folder).entries())
    path = folder / "released"
    return counted, path.stat().st_size if path.exists() else 0


def kill_sweep(folder, **how):
    """Kill a site before each of its calls that touch the disk, until one gets through."""
    begun = folder / "begun"
    begun.mkdir()
    site(begun).spend(release(1), TERMS)
    (begun / "released").write_bytes(b"x")
    worst = 0
    for survives in range(200):
        home = folder / str(survives)
        shutil.copytree(begun, home)
        child = os.fork()
        if child == 0:
            _kill_after(survives)
            rounds(home, 1, **how)
            os._exit(0)
        done = os.waitpid(child, 0)[1] == 0
        counted, released = counted_and_released(home)
        worst = max(worst, released - counted)
        verify(home / "audit.jsonl")
        site(home).spend(release(counted + 1), TERMS)  # and it goes on
        if done:
            return survives, worst
    raise AssertionError("never got through")


def _kill_after(survives):
    left = [survives]

    def counted(call):
        def wrapper(*arguments, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*arguments, **more)

        return wrapper

    for name in ("fsync", "fchmod", "replace", "write"):
        setattr(os, name, counted(getattr(os, name)))


def test_killed_before_any_write_it_never_counts_too_little(tmp_path):
    calls, worst = kill_sweep(tmp_path)
    assert worst == 0
    assert calls >= 8


def test_the_sweep_would_notice_a_release_before_the_ledger(tmp_path):
    assert kill_sweep(tmp_path, ledger_first=False)[1] == 1


@pytest.mark.slow
def test_killed_at_random_it_never_counts_too_little(tmp_path):
    """Processes of their own, killed at any instruction."""
    generator = random.Random(6)
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[2], sys.argv[3]]; "
        "import test_kill; print('on', flush=True); test_kill.rounds(Path(sys.argv[1]), 10**6)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(ROOT), str(Path(__file__).parent)]
    for _ in range(10):
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(generator.uniform(0.2, 3.0))
        child.kill()
        child.wait()
        counted, released = counted_and_released(tmp_path)
        assert released <= counted <= released + 10
    assert released > 10
