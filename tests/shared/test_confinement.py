"""What a confined program cannot do, tried by programs of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.confinement import Allowed, Confinement, is_possible

PROGRAMS = [Path(sys.prefix), Path(sys.base_prefix), *map(Path, ("/usr", "/lib", "/lib64", "/etc"))]

pytestmark = pytest.mark.skipif(
    not is_possible(), reason="needs Linux 5.13 with Landlock, which keeps couriers from data"
)


def tried(allowed, code):
    """Run Python code confined; return what it printed."""
    rules = Confinement(allowed)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        preexec_fn=rules.enter,
        capture_output=True,
        text=True,
        check=False,
        cwd="/usr",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def attempt(action):
    return f"""
import os, socket, subprocess, sys
try:
    {action}
    print("done")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "data" / "metadata.csv"
    file.parent.mkdir()
    file.write_text("a patient")
    return file


@pytest.mark.parametrize(
    "action",
    [
        "open('{file}').read()",
        "open('{file}', 'a').write('x')",
        "os.listdir('{folder}')",
        "os.unlink('{file}')",
        "os.rename('{file}', '{own}/stolen')",
        "os.link('{file}', '{own}/linked')",
        "open('/proc/{pid}/root{file}').read()",
        "os.symlink('{file}', '{own}/alias') or open('{own}/alias').read()",
        "open('{folder}/new', 'w')",
        "os.chdir('{folder}') or open('metadata.csv').read()",
    ],
)
def test_files_outside_are_out_of_reach(tmp_path, secret, action):
    own = tmp_path / "own"
    own.mkdir()
    told = {"file": secret, "folder": secret.parent, "own": own, "pid": os.getpid()}
    allowed = Allowed(read=PROGRAMS, write=[own])
    assert tried(allowed, attempt(action.format(**told))) in ("PermissionError", "OSError")
    assert secret.read_text() == "a patient"
    # The same works for a program that may read there: it is the rules that keep it out.
    free = Allowed(read=PROGRAMS, write=[own, secret.parent, Path("/proc")])
    (own / "alias").unlink(missing_ok=True)
    if "/proc/" not in action:
        assert tried(free, attempt(action.format(**told))) == "done"


def test_what_it_starts_is_confined_too(tmp_path, secret):
    code = f"subprocess.run(['/usr/bin/cat', '{secret}'], check=True, capture_output=True)"
    code = code.replace("check=True", "check=False") + ".returncode and exit(print('refused'))"
    assert tried(Allowed(read=PROGRAMS), attempt(code)) == "refused"


def test_only_the_named_ports_are_reached(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        ports = [each.getsockname()[1] for each in (one, other)]
        connect = "socket.create_connection(('127.0.0.1', {}), 2)"
        allowed = Allowed(read=PROGRAMS, connect=ports[:1])
        assert tried(allowed, attempt(connect.format(ports[0]))) == "done"
        assert tried(allowed, attempt(connect.format(ports[1]))) == "PermissionError"
        listen = "socket.create_server(('127.0.0.1', 0))"
        assert tried(allowed, attempt(listen)) == "PermissionError"


def test_no_signal_reaches_a_process_outside():
    with subprocess.Popen(["sleep", "60"]) as other:
        kill = f"os.kill({other.pid}, 9)"
        assert tried(Allowed(read=PROGRAMS), attempt(kill)) == "PermissionError"
        assert other.poll() is None
        other.kill()


def test_a_pathname_socket_is_still_reached(tmp_path):
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        connect = f"socket.socket(socket.AF_UNIX).connect('{path}')"
        assert tried(Allowed(read=PROGRAMS), attempt(connect)) == "done"


def test_a_file_that_is_listed_is_not_read(tmp_path, secret):
    allowed = Allowed(read=PROGRAMS, listed=[tmp_path])
    assert tried(allowed, attempt(f"os.listdir('{secret.parent}')")) == "done"
    assert tried(allowed, attempt(f"open('{secret}')")) == "PermissionError"
