"""``consilia client courier``: Flower's SuperNode and SuperExec as one unit.

The SuperNode fetches messages and brings back answers, over one outbound connection; its SuperExec
starts ``client.app`` for each, which hands the bytes to the agent's socket. Both live and die
together: a SuperNode whose SuperExec is gone looks well and never works again.
"""

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.service import check_socket_path
from shared.errors import ConfigError
from shared.files import storage_errors
from shared.processes import (
    Unit,
    environment,
    free_port,
    program,
    secret_file,
    supervise,
    until_signal,
)


@dataclass(frozen=True)
class CourierSettings:
    """What a courier needs to know; nothing of it is about records.

    Attributes:
        superlink: The coordinator, as ``host:port``.
        socket: The agent's socket.
        home: Folder for Flower's own files, the secret and the log.
        transport: Further arguments of the SuperNode: how it trusts, and is known to, the
            coordinator.
    """

    superlink: str
    socket: Path
    home: Path
    transport: Sequence[str] = ("--insecure",)


def run_courier(settings: CourierSettings) -> int:
    """Carry messages until a signal; return the exit code.

    Raises:
        ConfigError: If Flower is not installed, a path cannot be used, or another courier
            works in the same folder.
        StorageError: If the courier's folder cannot be written.
    """
    check_socket_path(settings.socket)
    host, _, port = settings.superlink.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--superlink {settings.superlink}: expected HOST:PORT")
    with _held(settings.home), until_signal() as stopped:
        unit = courier_unit(settings)
        sys.stdout.write(f"courier to {settings.superlink} for {settings.socket}, log {unit.log}\n")
        sys.stdout.flush()
        supervise([unit], stopped)
    return 0


def courier_unit(settings: CourierSettings) -> Unit:
    """Return the courier's programs; nothing is started.

    Raises:
        ConfigError: If Flower is not installed.
        StorageError: If the secret between them cannot be made.
    """
    secret = str(secret_file(settings.home / "superexec.secret"))
    port = str(free_port())
    supernode = [
        *(program("flower-supernode"), "--superlink", settings.superlink, *settings.transport),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", port),
        *("--superexec-auth-secret-file", secret),
        *("--node-config", f'agent-socket="{settings.socket.absolute()}"'),
    ]
    superexec = [
        *(program("flower-superexec"), "--insecure"),
        *("--runtime-api-address", f"127.0.0.1:{port}", "--superexec-auth-secret-file", secret),
    ]
    own = environment(settings.home / "flower")
    return Unit("courier", [supernode, superexec], settings.home / "courier.log", own)


@contextmanager
def _held(home: Path) -> Iterator[None]:
    """Hold the courier's folder for this process."""
    with storage_errors(f"{home}: the courier's folder cannot be made"):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (home / "lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{home}: another courier works in this folder; stop it first, or choose another"
            ) from None
        yield
