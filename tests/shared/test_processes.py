"""Programs beside us: kept alive together, quiet, and gone when we are."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from shared import processes
from shared.errors import ConfigError
from shared.processes import QUIET, Unit, environment, program, secret_file, supervise

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(wanted, seconds=10.0):
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def unit(tmp_path):
    unit = Unit("pair", [SLEEP, SLEEP], tmp_path / "log" / "pair.log", dict(os.environ))
    yield unit
    unit.stop()


def test_when_one_program_of_a_unit_ends_all_are_started_again(unit):
    unit.look()
    before = unit.pids
    os.kill(before[1], signal.SIGKILL)
    until(lambda: (unit.look(), len(unit.pids) == 2 and not set(unit.pids) & set(before))[1])
    assert not any(alive(pid) for pid in before)
    assert b"pair ended with [None, -9]" in unit.log.read_bytes()


def test_a_unit_that_dies_young_waits_ever_longer(tmp_path):
    unit = Unit("short", [[sys.executable, "-c", ""]], tmp_path / "log", dict(os.environ))
    starts = []
    begun = time.monotonic()
    while time.monotonic() - begun < 4:
        before = unit._born
        unit.look()
        if unit._born != before:
            starts.append(unit._born - begun)
        time.sleep(0.01)
    unit.stop()
    assert 2 <= len(starts) <= 4
    assert starts[1] - starts[0] >= 1.0


def test_a_program_that_will_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_TERMINATION_SECONDS", 0.5)
    code = "import signal,time; signal.signal(signal.SIGTERM, lambda *_: 0); print(1, flush=True)"
    stubborn = [sys.executable, "-c", f"{code}\nwhile True: time.sleep(1)"]
    unit = Unit("stubborn", [stubborn], tmp_path / "log", dict(os.environ))
    unit.look()
    until(lambda: unit.log.read_bytes() == b"1\n")
    [pid] = unit.pids
    unit.stop()
    assert not alive(pid)


def test_supervise_ends_its_units_when_it_is_told_to(unit):
    stopped, seen = threading.Event(), []

    def each():
        seen.extend(unit.pids)
        stopped.set()

    supervise([unit], stopped, each)
    assert len(seen) == 2
    assert not any(alive(pid) for pid in seen)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans")
def test_programs_do_not_outlive_a_killed_supervisor(tmp_path):
    code = f"""
import os, threading
from pathlib import Path
from shared.processes import Unit, supervise
unit = Unit("u", [{SLEEP!r}], Path({str(tmp_path / "log")!r}), dict(os.environ))
supervise([unit], threading.Event(), lambda: print(*unit.pids, flush=True))
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(supervisor.stdout.readline())
    assert alive(pid)
    supervisor.kill()
    supervisor.wait(10)
    supervisor.stdout.close()
    until(lambda: not alive(pid))


def test_the_environment_reports_looks_up_and_installs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    found = environment(tmp_path / "flower", MORE="x")
    assert found.items() >= QUIET.items()
    assert QUIET["FLWR_TELEMETRY_ENABLED"] == "0"
    assert QUIET["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert QUIET["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["FLWR_HOME"] == str(tmp_path / "flower")
    assert found["MORE"] == "x"


def test_a_program_that_is_not_there_is_named():
    assert program("flower-supernode").endswith("flower-supernode")
    with pytest.raises(ConfigError, match="flower-nonsense"):
        program("flower-nonsense")


def test_a_secret_is_its_owners_and_stays_the_same(tmp_path):
    path = secret_file(tmp_path / "a" / "secret")
    content = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(content) == 64
    assert secret_file(path).read_bytes() == content


def test_a_process_that_forbids_dumps_leaves_none_and_is_closed_to_its_user():
    code = (
        "import ctypes, os, resource; from shared.processes import forbid_dumps\n"
        "is_dumpable = lambda: ctypes.CDLL(None).prctl(3)\n"
        "before = is_dumpable(); forbid_dumps()\n"
        "print(before, is_dumpable(), *resource.getrlimit(resource.RLIMIT_CORE))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "0", "0", "0"]
