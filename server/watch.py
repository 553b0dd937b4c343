"""The watcher: a run whose ServerApp died is handed to Flower again, until it is finished.

Flower does not start a dead ServerApp again. What is true of a run is ours to know: its lock is
held while a ServerApp works on it, and the history says whether it is finished. A run that is
wanted, not finished and held by nobody is submitted again and goes on from its last committed
round. The watcher keeps nothing in memory that it could not do without, so it may be killed too.

It also lets the SuperLink know whose nodes the roster lets in.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.flower_app import start_vehicle, stop_vehicle
from server.history import RunHistory
from server.home import CoordinatorHome
from server.nodes import keep_nodes
from server.provisioning.folder import ConsortiumFolder, ConsortiumPaths
from server.run_files import is_locked
from server.vehicle import Vehicle, read_vehicle, write_vehicle
from shared.errors import ConsiliaError
from shared.processes import Unit, until_signal

ENDED = frozenset({"finished", "finished-incomplete", "failed"})
"""States that a run reached by itself; whoever wants to go on after a failure says so."""

_LOOK_SECONDS = 0.5
_GONE_SECONDS = 2.0
"""So long after its lock was let go a ServerApp counts as dead."""
_GRACE_SECONDS = 30.0
"""So long a ServerApp may take to start."""
_DOOR_SECONDS = 3.0
"""A revoked site is shut out, and a new one let in, so soon."""


@dataclass
class Watcher:
    """Looks after the runs of a coordinator.

    Attributes:
        home: The coordinator's folder.
        again: Ends one of Flower's runs and starts another; returns its number.
        clock: Monotonic seconds.
    """

    home: CoordinatorHome
    again: Callable[[str, Vehicle], int]
    clock: Callable[[], float] = time.monotonic
    _held: dict[tuple[str, int], bool] = field(default_factory=dict)
    _since: dict[tuple[str, int], float] = field(default_factory=dict)

    def look(self) -> None:
        """Look at every run once.

        Raises:
            ConsiliaError: If the history or Flower cannot be used at the moment.
        """
        for folder in sorted(self.home.runs.glob("*/vehicle.json")):
            vehicle = read_vehicle(folder.parent)
            if vehicle is not None and vehicle.wanted:
                self._look_at(folder.parent, vehicle)

    def _look_at(self, run: Path, vehicle: Vehicle) -> None:
        key, now = (run.name, vehicle.flower_run), self.clock()
        held = is_locked(run)
        if held or key not in self._since:
            self._held[key], self._since[key] = bool(held), now
            return
        patience = _GONE_SECONDS if self._held[key] else _GRACE_SECONDS
        if now - self._since[key] < patience:
            return
        ended = self._ended(run.name)  # if the history is away this is asked again at once
        self._since[key] = now
        if ended:
            write_vehicle(run, Vehicle(vehicle.flower_run, wanted=False))
        elif self.home.answers():  # otherwise the SuperLink is on its way back
            flower_run = self.again(run.name, vehicle)
            write_vehicle(run, Vehicle(flower_run))

    def _ended(self, run: str) -> bool:
        with RunHistory(self.home.history_url, patience=0.0) as history:
            return history.knows(run) and history.run(run).status in ENDED


def watch_unit(home: CoordinatorHome, environment: Mapping[str, str]) -> Unit:
    """Return the watcher as a program of its own."""
    command = [sys.executable, "-m", "server.watch", str(home.folder)]
    return Unit("watch", [command], home.logs / "watch.log", environment)


@dataclass
class Doorkeeper:
    """Lets the roster's nodes in, and no others; see ``server.nodes``.

    Attributes:
        home: The coordinator's folder.
        clock: Monotonic seconds.
    """

    home: CoordinatorHome
    clock: Callable[[], float] = time.monotonic
    _due: float = field(default=0.0, init=False)

    def look(self) -> None:
        """Compare the roster with what the SuperLink knows, every few seconds.

        Raises:
            ConsiliaError: If the roster or the SuperLink cannot be used at the moment.
        """
        if self.clock() < self._due or not ConsortiumPaths.of(self.home.folder).folder.exists():
            return
        self._due = self.clock() + _DOOR_SECONDS
        changes = keep_nodes(ConsortiumFolder.open(self.home.folder), self.home.superlink())
        for site in changes.registered:
            _note(f"site {site}: its node may connect")
        for number in changes.unregistered:
            _note(f"node {number}: may not connect any more")


def main() -> None:
    """Watch the runs of the folder that is the first argument, until a signal."""
    home = CoordinatorHome.at(Path(sys.argv[1]))

    def again(run: str, vehicle: Vehicle) -> int:
        stop_vehicle(home, vehicle.flower_run)
        flower_run = start_vehicle(home, run)
        _note(f"run {run}: its ServerApp was gone; goes on as Flower's run {flower_run}")
        return flower_run

    looks = (Doorkeeper(home).look, Watcher(home, again).look)
    said: dict[Callable[[], None], str] = {}
    with until_signal() as stopped:
        while not stopped.is_set():
            for look in looks:
                try:
                    look()
                    said.pop(look, None)
                except ConsiliaError as error:
                    if said.get(look) != str(error):  # what lasts is said once
                        _note(str(error))
                    said[look] = str(error)
            stopped.wait(_LOOK_SECONDS)


def _note(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
