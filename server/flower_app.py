"""The Flower app: a few lines that say where our code is, always the same to the byte.

Flower packs an app's folder and sends it to every site (a FAB). Ours holds no code at all: both
sides run what is installed on them. What a run is to do travels as a message, so that the
digest of the app depends on the version of consilia only.
"""

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from typing import Any, Final

from server.home import CoordinatorHome
from shared.errors import ConsiliaError, StorageError
from shared.files import write_atomic
from shared.flower_calls import SuperLink
from shared.processes import environment, program

RUN: Final = "run"
"""The one key of the run configuration: the run's name."""

_CONNECTION = "coordinator"
_SECONDS = 60.0

_PROJECT = """\
[project]
name = "consilia"
version = "{version}"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "consilia"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run = ""
"""

_README = """\
Consilia. This app holds no code: server.app and client.app are those that are installed.
"""


def write_app(home: CoordinatorHome, superlink: SuperLink) -> None:
    """Write the app and how Flower's command reaches the SuperLink.

    Args:
        home: The coordinator's folder.
        superlink: Where it listens, and whom it is to be trusted by.

    Raises:
        StorageError: If it cannot be written.
    """
    version = importlib.metadata.version("consilia")
    write_atomic(home.app / "pyproject.toml", _PROJECT.format(version=version).encode())
    write_atomic(home.app / "README.md", _README.encode())
    authority = superlink.authority
    trust = f'root-certificates = "{authority}"' if authority else "insecure = true"
    address = superlink.url.partition("//")[2]
    connection = (
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f'address = "{address}"\n{trust}\n'
    )
    write_atomic(home.flower / "config.toml", connection.encode(), mode=0o600)


def start_vehicle(home: CoordinatorHome, run: str) -> int:
    """Let Flower carry a run, from its last committed round on; return Flower's run id.

    Raises:
        StorageError: If Flower does not take it.
    """
    answer = flower(home, "run", str(home.app), _CONNECTION, "--run-config", f'{RUN}="{run}"')
    try:
        return int(answer["run-id"])
    except (KeyError, TypeError, ValueError):
        raise StorageError(
            f"run {run}: the SuperLink did not take it ({_reason(answer)}); see {home.logs}"
        ) from None


def stop_vehicle(home: CoordinatorHome, flower_run: int) -> bool:
    """End Flower's run; return whether there was one to end."""
    return bool(flower(home, "stop", str(flower_run), _CONNECTION).get("success"))


def flower(home: CoordinatorHome, *arguments: str) -> Mapping[str, Any]:
    """Run Flower's command and return the JSON object that it prints.

    Raises:
        ConsiliaError: If it prints none within a minute.
    """
    command = [program("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(  # noqa: S603 - Flower's own program, no shell
            command,
            capture_output=True,
            text=True,
            env=environment(home.flower),
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ConsiliaError(
            f"flwr {arguments[0]}: no answer within {_SECONDS:g} s; is the machine overloaded?"
        ) from None
    try:
        content = json.loads(done.stdout)
    except ValueError:
        return {"success": False, "error-message": (done.stderr or done.stdout)[-300:]}
    return content if isinstance(content, dict) else {}


def _reason(answer: Mapping[str, Any]) -> str:
    text = str(answer.get("error-message") or answer.get("error") or "no reason given")
    return " ".join(text.split())[:300]
