"""``consilia server start``: gateway, SuperLink, SuperExec and watcher, kept alive until stopped.

The SuperLink serves its three APIs on one port of the loopback interface, with process isolation
and a database file, so that it may die and come back while a run goes on. Its Control and Runtime
APIs ask nobody for a password: only the gateway, which lets the calls of nodes through and nothing
else, is to be reached from elsewhere.

With a consortium in the folder the SuperLink speaks TLS and lets in the roster's nodes only.
Without one there is no gateway, and it is for trials on one machine.
"""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from enum import StrEnum

from server.flower_app import write_app
from server.gateway_unit import gateway_unit
from server.home import HOME_VARIABLE, CoordinatorHome
from server.provisioning.folder import ConsortiumFolder, ConsortiumPaths
from server.watch import watch_unit
from shared.errors import ConfigError
from shared.files import held, storage_errors
from shared.flower_calls import SuperLink
from shared.processes import Unit, environment, program, secret_file, supervise, until_signal

_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_HANDOVER_SECONDS = 15.0
_TAKEN = "another coordinator runs here; stop it first, or choose another --home"


class Part(StrEnum):
    """What a coordinator consists of; each may run on its own, as in containers."""

    GATEWAY = "gateway"
    SUPERLINK = "superlink"
    SUPEREXEC = "superexec"


def start_command(home: CoordinatorHome, port: int, parts: Sequence[Part]) -> int:
    """Run the coordinator until a signal ends it; return the exit code.

    Args:
        home: The coordinator's folder.
        port: Of the SuperLink, on loopback.
        parts: What to run of it; all if empty.

    Raises:
        ConfigError: If another coordinator holds the folder, the port is taken, or a program
            is not installed.
        IdentityError: If the folder's consortium cannot be used, or its certificate is not
            right for every host.
        StorageError: If the folder cannot be written.
    """
    chosen = frozenset(parts or Part)
    with ExitStack() as stack, until_signal() as stopped:
        for part in sorted(chosen):
            stack.enter_context(held(home.folder, _TAKEN, f"lock.{part}"))
        consortium = _consortium(home)
        if Part.SUPERLINK in chosen:
            authority = consortium.paths.authority if consortium else None
            home.write_address(f"{_HOST}:{port}", authority)
            _await_free(home, port)
        units = coordinator_units(home, port, consortium, chosen)
        supervise(units, stopped, each=_say_when_ready(home, consortium, chosen))
    _say("coordinator stopped; committed rounds are intact, start it again to go on")
    return 0


def coordinator_units(
    home: CoordinatorHome,
    port: int,
    consortium: ConsortiumFolder | None,
    parts: Collection[Part],
) -> list[Unit]:
    """Return the coordinator's programs; nothing is started.

    Raises:
        ConfigError: If a program is not installed.
        StorageError: If a file between them cannot be made.
    """
    units = []
    if Part.SUPERLINK in parts:
        units.append(_superlink(home, port, consortium))
    if Part.SUPEREXEC in parts:
        authority = consortium.paths.authority.absolute() if consortium else None
        scheme = "https" if consortium else "http"
        write_app(home, SuperLink(f"{scheme}://{_HOST}:{port}", authority))
        units += [_superexec(home, port, consortium), watch_unit(home, _environment(home))]
    if Part.GATEWAY in parts and consortium is not None:
        units.append(gateway_unit(consortium, port, home.logs / "gateway.log"))
    return units


def _superlink(home: CoordinatorHome, port: int, consortium: ConsortiumFolder | None) -> Unit:
    with storage_errors(f"{home.database.parent}: cannot be made"):
        home.database.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(program("flower-superlink"), "--host", _HOST, "--port", str(port)),
        *("--database", str(home.database), "--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret_file(home.secret))),
        "--disable-runtime-dependency-installation",
    ]
    if consortium is None:
        command.append("--insecure")
    else:
        paths = consortium.paths
        command += ["--ssl-ca-certfile", str(paths.authority.absolute())]
        command += ["--ssl-certfile", str(paths.server.absolute())]
        command += ["--ssl-keyfile", str(paths.server_key.absolute())]
        command.append("--enable-supernode-auth")
    return Unit("superlink", [command], home.logs / "superlink.log", _environment(home))


def _superexec(home: CoordinatorHome, port: int, consortium: ConsortiumFolder | None) -> Unit:
    trust = ["--insecure"]
    if consortium is not None:
        trust = ["--root-certificates", str(consortium.paths.authority.absolute())]
    command = [
        *(program("flower-superexec"), *trust, "--runtime-api-address", f"{_HOST}:{port}"),
        *("--superexec-auth-secret-file", str(secret_file(home.secret))),
    ]
    return Unit("superexec", [command], home.logs / "superexec.log", _environment(home))


def _environment(home: CoordinatorHome) -> dict[str, str]:
    return environment(home.flower, **{HOME_VARIABLE: str(home.folder)})


def _consortium(home: CoordinatorHome) -> ConsortiumFolder | None:
    """Return the folder's consortium, checked; ``None`` if there is none."""
    if not ConsortiumPaths.of(home.folder).folder.exists():
        return None
    consortium = ConsortiumFolder.open(home.folder)
    consortium.check_server()
    return consortium


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


def _say_when_ready(
    home: CoordinatorHome, consortium: ConsortiumFolder | None, parts: Collection[Part]
) -> Callable[[], None]:
    """Return what says once that the SuperLink answers, or that it does not."""
    begun = time.monotonic()
    said: set[str] = set()

    def look() -> None:
        if "ready" in said:
            return
        if home.answers():
            said.add("ready")
            _say(_welcome(home, consortium, parts))
        elif "late" not in said and time.monotonic() - begun > _START_SECONDS:
            said.add("late")
            _say(f"the SuperLink does not answer yet; see {home.logs / 'superlink.log'}")

    return look


def _welcome(
    home: CoordinatorHome, consortium: ConsortiumFolder | None, parts: Collection[Part]
) -> str:
    lines = [f"coordinator ready on {home.superlink().url}"]
    if consortium is None:
        lines.append("no consortium here: no TLS, nothing is signed; for trials on one machine")
    elif Part.GATEWAY in parts:
        hosts = ", ".join(consortium.consortium.hosts)
        lines.append(f"gateway for {hosts}, port {consortium.consortium.port}")
    lines += [f"logs {home.logs}", f"Next: consilia server submit JOB.toml --home {home.folder}"]
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
