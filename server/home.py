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

import fcntl
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import ConfigError, RunDirectoryError
from shared.files import storage_errors, write_atomic

HOME_VARIABLE: Final = "CONSILIA_COORDINATOR"
"""Names the coordinator's folder to the ServerApp. Not in the run configuration: Flower sends
that to every site."""

_HISTORY_VARIABLE = "CONSILIA_HISTORY"
_UNUSABLE = "\"'\\\n"
_HEALTH_SECONDS = 5.0


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

    def write_address(self, address: str) -> None:
        """Keep where the SuperLink listens, as ``host:port``."""
        write_atomic(self.folder / "address.json", json.dumps({"superlink": address}).encode())

    def address(self) -> str:
        """Return where the SuperLink listens.

        Raises:
            ConfigError: If no coordinator was ever started here.
        """
        try:
            content = json.loads((self.folder / "address.json").read_text(encoding="utf-8"))
            return str(content["superlink"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.folder}: no coordinator was started here; start one with: "
                f"consilia server start --home {self.folder}"
            ) from None

    def answers(self) -> bool:
        """Return whether the SuperLink is there and well."""
        try:
            url = f"http://{self.address()}/health"
            with urllib.request.urlopen(url, timeout=_HEALTH_SECONDS) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError, ConfigError):
            return False

    def check_answers(self) -> None:
        """Raise unless the SuperLink is there and well.

        Raises:
            ConfigError: With how to start it.
        """
        address = self.address()
        if not self.answers():
            raise ConfigError(
                f"{address}: the coordinator does not answer; start it with: "
                f"consilia server start --home {self.folder}"
            )

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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, so that no second coordinator is started in it.

        Raises:
            ConfigError: If another one runs here.
        """
        with storage_errors(f"{self.folder}: the coordinator's folder cannot be made"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.folder}: another coordinator runs here; stop it first, or choose "
                    "another --home"
                ) from None
            yield
