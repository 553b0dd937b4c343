"""Programs that run beside us, Flower's above all: found, kept quiet, kept alive.

A ``Unit`` is a group of programs that live and die together. When one of them ends, for whatever
reason, the others are ended too and all are started again: at once if the unit had worked for a
while, and after 1, 2, 4 and then 5 seconds while it keeps dying young.

No program of Flower's reports its use, looks for updates or installs packages (``QUIET``).
"""

import contextlib
import ctypes
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from shared.errors import ConfigError
from shared.files import storage_errors

QUIET: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Set in the environment of every process: nothing is reported, looked up or installed."""

_PROMPT: Final = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
"""Seconds between two looks for work; Flower's default of 1 s is paid by every message."""

_LOOK_SECONDS = 0.1
_GROWN_UP_SECONDS = 10.0
_PAUSES = (0.2, 1.0, 2.0, 4.0, 5.0)
_TERMINATION_SECONDS = 10.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_SET_DUMPABLE = 4  # PR_SET_DUMPABLE


def environment(flower_home: Path, **more: str) -> dict[str, str]:
    """Return the environment for a program of Flower's.

    Args:
        flower_home: Where it keeps its own files.
        more: Further variables.
    """
    # Flower finds its programs by PATH; they are beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"FLWR_HOME": str(flower_home.absolute()), "PATH": path}
    return {**os.environ, **QUIET, **_PROMPT, **own, **more}


def program(name: str) -> str:
    """Return the path of a program that came with the same installation.

    Raises:
        ConfigError: If there is none.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"{name}: not found beside {sys.executable}; install consilia again")
    return found


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret_file(path: Path) -> Path:
    """Return a file with a random secret that only its owner can read; made if missing.

    Raises:
        StorageError: If it cannot be made.
    """
    with storage_errors(f"{path}: cannot be made"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
    return path


@dataclass
class Unit:
    """Programs that live and die together.

    Attributes:
        name: For messages and logs.
        commands: The programs with their arguments.
        log: Gets what they print.
        environment: Theirs.
        before: Called before every start; what it raises only delays the start.
        confine: Called in every program's process before the program begins; what it raises
            keeps the program from being started.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    environment: Mapping[str, str]
    before: Callable[[], None] | None = None
    confine: Callable[[], None] | None = None
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)
    _born: float = field(default=0.0, init=False)
    _due: float = field(default=0.0, init=False)
    _deaths: int = field(default=0, init=False)

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the programs, in the order of the commands."""
        return [child.pid for child in self._children]

    def look(self) -> None:
        """Start what should run and does not.

        Raises:
            StorageError: If the log cannot be written.
        """
        if self._children:
            codes = [child.poll() for child in self._children]
            if all(code is None for code in codes):
                return
            lived = time.monotonic() - self._born
            self.stop()
            self._note(f"ended with {codes} after {lived:.1f} s")
            self._deaths = 0 if lived > _GROWN_UP_SECONDS else self._deaths + 1
            self._due = time.monotonic() + _PAUSES[min(self._deaths, len(_PAUSES) - 1)]
        if time.monotonic() >= self._due:
            self._start()

    def restart(self, why: str) -> None:
        """End the unit; the next look starts it again.

        Raises:
            StorageError: If the log cannot be written.
        """
        self.stop()
        self._note(f"is started again: {why}")

    def stop(self) -> None:
        """End all programs of the unit: politely, and after ten seconds for sure."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        end = time.monotonic() + _TERMINATION_SECONDS
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, end - time.monotonic()))
            # What it had started itself goes too: it would wait for an answer for ever.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self._children = []

    def _start(self) -> None:
        self._born = time.monotonic()
        if self.before is not None:
            try:
                self.before()
            except Exception as error:
                self._note(f"before its start: {type(error).__name__}: {error}")
        with self._log() as log:
            for command in self.commands:
                self._children.append(
                    subprocess.Popen(  # noqa: S603 - our own programs, no shell
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=dict(self.environment),
                        start_new_session=True,  # Ctrl-C is for us; we end them in order
                        preexec_fn=self._prepare,  # noqa: PLW1509 - started without threads
                    )
                )

    def _prepare(self) -> None:
        die_with_parent()
        if self.confine is not None:
            self.confine()

    def _note(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._log() as log:
            log.write(f"{stamp} {self.name} {text}\n".encode())

    def _log(self) -> IO[bytes]:
        with storage_errors(f"{self.log}: cannot be written"):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            return self.log.open("ab")


def supervise(
    units: Sequence[Unit], stopped: threading.Event, each: Callable[[], None] = lambda: None
) -> None:
    """Keep units alive until ``stopped`` is set; then end them, the last one first.

    Args:
        units: In the order of their start.
        stopped: Set by a signal, mostly; see ``until_signal``.
        each: Called after every look.

    Raises:
        StorageError: If a log cannot be written.
    """
    try:
        while not stopped.is_set():
            for unit in units:
                unit.look()
            each()
            stopped.wait(_LOOK_SECONDS)
    finally:
        for unit in reversed(units):
            unit.stop()


@contextlib.contextmanager
def until_signal() -> Iterator[threading.Event]:
    """Yield an event that a termination signal or Ctrl-C sets."""
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def forbid_dumps() -> None:
    """Keep this process's memory from the disk and from its user's other processes.

    No core dump is written, to a file or to a program that collects them, and nobody but root
    attaches to it or reads its memory.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # elsewhere the limit has to do
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """Let Linux end this process when its parent is gone, even if that was killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
