"""The coordinator's folder: what `consilia server start` keeps, and `submit` and `status` read.

```
runs/<run>/             run directories (``server.checkpoint``), each with its vehicle.json
history.sqlite          the run history, unless CONSILIA_HISTORY names another database
superlink/state.db      Flower's own state: nodes, messages on their way
flower/, flower-app/    Flower's configuration, and the app that tells it where our code is
superexec.secret        between SuperLink and SuperExec
address.json            where the SuperLink listens
log/                    what the programs print
```
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import ConfigError, RunDirectoryError
from shared.files import is_held, write_atomic
from shared.flower_calls import SuperLink

HOME_VARIABLE: Final = "CONSILIA_COORDINATOR"
"""Names the coordinator's folder to the ServerApp. Not in the run configuration: Flower sends
that to every site."""

SUPERLINK_LOCK: Final = "lock.superlink"
"""Held by the ``server start`` that keeps the SuperLink alive."""

_RESTART_SECONDS = 20.0
_HISTORY_VARIABLE = "CONSILIA_HISTORY"
_UNUSABLE = "\"'\\\n"


@dataclass(frozen=True)
class CoordinatorHome:
    """The coordinator's folder.

    Attributes:
        folder: Absolute.
    """

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "CoordinatorHome":
        """Return a folder's paths; nothing is made.

        Raises:
            ConfigError: If its name cannot be handed to Flower, or it is a file.
        """
        absolute = folder.absolute()
        if any(character in str(absolute) for character in _UNUSABLE):
            raise ConfigError(
                f"--home {folder}: choose a folder without quotation marks in its name"
            )
        if absolute.exists() and not absolute.is_dir():
            raise ConfigError(f"--home {folder}: is a file; expected the coordinator's folder")
        return cls(absolute)

    @property
    def runs(self) -> Path:
        """Return the folder of the run directories."""
        return self.folder / "runs"

    @property
    def flower(self) -> Path:
        """Return Flower's own folder (``FLWR_HOME``)."""
        return self.folder / "flower"

    @property
    def app(self) -> Path:
        """Return the folder of the Flower app."""
        return self.folder / "flower-app"

    @property
    def database(self) -> Path:
        """Return the SuperLink's database file."""
        return self.folder / "superlink" / "state.db"

    @property
    def secret(self) -> Path:
        """Return the file of the secret between SuperLink and SuperExec."""
        return self.folder / "superexec.secret"

    @property
    def logs(self) -> Path:
        """Return the folder of the programs' logs."""
        return self.folder / "log"

    @property
    def history_url(self) -> str:
        """Return the database of the run history."""
        return os.environ.get(_HISTORY_VARIABLE) or f"sqlite:///{self.folder / 'history.sqlite'}"

    def write_address(self, address: str, authority: Path | None) -> None:
        """Keep where the SuperLink listens, as ``host:port``, and whose certificate it shows."""
        content = {"superlink": address, "authority": str(authority) if authority else None}
        write_atomic(self.folder / "address.json", json.dumps(content).encode())

    def superlink(self) -> SuperLink:
        """Return where the SuperLink listens.

        Raises:
            ConfigError: If no coordinator was ever started here.
        """
        try:
            content = json.loads((self.folder / "address.json").read_text(encoding="utf-8"))
            address, authority = str(content["superlink"]), content.get("authority")
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.folder}: no coordinator was started here; start one with: "
                f"consilia server start --home {self.folder}"
            ) from None
        if authority:
            return SuperLink(f"https://{address}", Path(authority))
        return SuperLink(f"http://{address}")

    def answers(self) -> bool:
        """Return whether the SuperLink is there and well."""
        try:
            return self.superlink().is_well()
        except ConfigError:
            return False

    def check_answers(self) -> None:
        """Raise unless the SuperLink is there and well; one that is being restarted is awaited.

        Raises:
            ConfigError: With how to start it.
        """
        superlink = self.superlink()
        end = time.monotonic() + _RESTART_SECONDS
        while not superlink.is_well():
            if not self.is_running() or time.monotonic() > end:
                raise ConfigError(
                    f"{superlink.url}: the coordinator does not answer; start it with: "
                    f"consilia server start --home {self.folder}"
                )
            time.sleep(0.3)

    def is_running(self) -> bool:
        """Return whether a ``server start`` keeps the SuperLink alive."""
        return is_held(self.folder, SUPERLINK_LOCK)

    def run_path(self, run: str) -> Path:
        """Return a run's directory.

        Raises:
            RunDirectoryError: If there is no such run.
        """
        path = self.runs / run
        if path.parent != self.runs or not (path / "manifest.json").exists():
            raise RunDirectoryError(
                f"run {run}: not in {self.runs}; consilia server status --home {self.folder} "
                "lists the runs"
            )
        return path
