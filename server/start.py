"""``consilia server start``: SuperLink and SuperExec on loopback, kept alive until stopped.

The SuperLink serves its three APIs on one port of the loopback interface, with process isolation
and a database file, so that it may die and come back while a run goes on. Its Control and Runtime
APIs ask nobody for a password: only a gateway that lets the Fleet API through may be reached from
elsewhere.
"""

import sys
import time
from collections.abc import Callable

from server.flower_app import write_app
from server.home import HOME_VARIABLE, CoordinatorHome
from server.watch import watch_unit
from shared.errors import ConfigError
from shared.processes import Unit, environment, program, secret_file, supervise, until_signal

_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_HANDOVER_SECONDS = 15.0


def start_command(home: CoordinatorHome, port: int) -> int:
    """Run the coordinator until a signal ends it; return the exit code.

    Raises:
        ConfigError: If another coordinator holds the folder, or the port is taken.
        StorageError: If the folder cannot be written.
    """
    with home.held(), until_signal() as stopped:
        home.write_address(f"{_HOST}:{port}")
        _await_free(home, port)
        write_app(home)
        units = coordinator_units(home, port)
        supervise(units, stopped, each=_say_when_ready(home))
    _say("coordinator stopped; committed rounds are intact, start it again to go on")
    return 0


def _await_free(home: CoordinatorHome, port: int) -> None:
    """Wait until a SuperLink whose coordinator was killed has ended.

    Raises:
        ConfigError: If somebody still answers at the port after that.
    """
    end = time.monotonic() + _HANDOVER_SECONDS
    while home.answers():
        if time.monotonic() > end:
            raise ConfigError(f"--port {port}: another program answers there; choose another port")
        time.sleep(0.5)


def coordinator_units(home: CoordinatorHome, port: int) -> list[Unit]:
    """Return the coordinator's programs; nothing is started.

    Raises:
        ConfigError: If Flower is not installed.
        StorageError: If the secret between them cannot be made.
    """
    secret = str(secret_file(home.secret))
    home.database.parent.mkdir(parents=True, exist_ok=True)
    own = environment(home.flower, **{HOME_VARIABLE: str(home.folder)})
    superlink = [
        *(program("flower-superlink"), "--insecure", "--host", _HOST, "--port", str(port)),
        *("--database", str(home.database), "--isolation", "process"),
        *("--superexec-auth-secret-file", secret, "--disable-runtime-dependency-installation"),
    ]
    superexec = [
        *(program("flower-superexec"), "--insecure"),
        *("--runtime-api-address", f"{_HOST}:{port}", "--superexec-auth-secret-file", secret),
    ]
    return [
        Unit("superlink", [superlink], home.logs / "superlink.log", own),
        Unit("superexec", [superexec], home.logs / "superexec.log", own),
        watch_unit(home, own),
    ]


def _say_when_ready(home: CoordinatorHome) -> Callable[[], None]:
    """Return what says once that the SuperLink answers, or that it does not."""
    begun = time.monotonic()
    said: set[str] = set()

    def look() -> None:
        if "ready" in said:
            return
        if home.answers():
            said.add("ready")
            _say(
                f"coordinator ready on http://{home.address()}\nlogs {home.logs}\n"
                f"Next: consilia server submit JOB.toml --home {home.folder}"
            )
        elif "late" not in said and time.monotonic() - begun > _START_SECONDS:
            said.add("late")
            _say(f"the SuperLink does not answer yet; see {home.logs / 'superlink.log'}")

    return look


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
