"""Whether a SuperNode still talks to its gateway.

A SuperNode whose connection ended by an answer that it does not know stays alive and idle, for
ever: its process says nothing about it. Its sockets do.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shared.processes import Unit

_ESTABLISHED = "01"
_LOOK_SECONDS = 1.0
SILENT_SECONDS = 60.0
"""So long a SuperNode may have no connection; it asks for messages every three seconds."""


def is_connected(pid: int, own_port: int) -> bool:
    """Return whether a process has an established connection that it opened itself.

    Args:
        pid: The process; on systems without ``/proc`` the answer is always yes.
        own_port: Connections to this port of its own do not count.
    """
    folder = Path(f"/proc/{pid}")
    try:
        own = {_target(link) for link in (folder / "fd").iterdir()}
        tables = [(folder / "net" / name).read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return not folder.parent.joinpath("self").exists() or folder.exists()
    for line in (line for table in tables for line in table.splitlines()[1:]):
        columns = line.split()
        local, state, inode = columns[1], columns[3], columns[9]
        port = int(local.rpartition(":")[2], 16)
        if state == _ESTABLISHED and f"socket:[{inode}]" in own and port != own_port:
            return True
    return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


@dataclass
class Liveness:
    """Restarts a courier whose SuperNode has had no connection for a while.

    Attributes:
        unit: The courier's programs, the SuperNode first.
        own_port: Where the SuperNode itself listens, on loopback.
        silent_seconds: How long that may be.
        clock: Monotonic seconds.
        connected: Whether a process has a connection that it opened itself.
    """

    unit: Unit
    own_port: int
    silent_seconds: float = SILENT_SECONDS
    clock: Callable[[], float] = time.monotonic
    connected: Callable[[int, int], bool] = is_connected
    _pid: int | None = field(default=None, init=False)
    _seen: float = field(default=0.0, init=False)
    _due: float = field(default=0.0, init=False)

    def look(self) -> None:
        """Look once; called several times a second."""
        now = self.clock()
        if now < self._due:
            return
        self._due = now + _LOOK_SECONDS
        pid = self.unit.pids[0] if self.unit.pids else None
        if pid is None or pid != self._pid or self.connected(pid, self.own_port):
            self._pid, self._seen = pid, now
        elif now - self._seen >= self.silent_seconds:
            self.unit.restart(f"no connection for {self.silent_seconds:g} s")
            self._pid = None
