"""``consilia client courier``: Flower's SuperNode and SuperExec as one unit.

The SuperNode fetches messages and brings back answers, over one outbound connection; its SuperExec
starts ``client.app`` for each, which hands the bytes to the agent's socket. Both live and die
together: a SuperNode whose SuperExec is gone looks well and never works again.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from client.liveness import Liveness
from client.node_session import NodeSession
from client.provisioning.folder import FOLDER, SiteIdentity
from client.service import check_socket_path
from shared.confinement import Allowed, Confinement, is_possible
from shared.errors import ConfigError
from shared.files import held, storage_errors
from shared.flower_calls import SuperLink
from shared.processes import (
    Unit,
    environment,
    free_port,
    program,
    secret_file,
    supervise,
    until_signal,
)

_ROOT = Path(__file__).parents[1]
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
_MACHINE = ("/proc/sys", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu")
"""Of the machine as a whole; what other processes are, and were told, is not theirs to see."""

_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/tty")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_NAMES = 53
"""Port of name servers, which are asked by TCP when an answer is long."""

_UNCONFINED = (
    "this kernel cannot keep the courier from other files (Landlock): run it as a user of its own, "
    "who cannot read the site's data, or in its container\n"
)
_TAKEN = "another courier works in this folder; stop it first, or choose another"


@dataclass(frozen=True)
class CourierSettings:
    """What a courier needs to know; nothing of it is about records.

    Attributes:
        superlink: The gateway, as ``host:port``.
        socket: The agent's socket.
        home: Folder for Flower's own files, the secret and the log.
        transport: Further arguments of the SuperNode: how it trusts, and is known to, the
            coordinator.
        session: Ends the node's old session before a start; none without a consortium.
    """

    superlink: str
    socket: Path
    home: Path
    transport: Sequence[str] = ("--insecure",)
    session: NodeSession | None = None


def courier_settings(
    site: Path, superlink: str | None, socket: Path | None, home: Path | None, *, insecure: bool
) -> CourierSettings:
    """Return what the courier of a site's folder needs.

    Args:
        site: The site's folder; what is not given lies in it.
        superlink: The gateway as ``host:port``; the kit's if not given.
        socket: The agent's socket.
        home: The courier's folder.
        insecure: Without TLS, for trials on one machine.

    Raises:
        ConfigError: If there is neither a kit nor ``insecure``, or both.
        IdentityError: If the site has not joined, or its keys cannot be used.
    """
    socket, home = socket or site / "run" / "agent.sock", home or site / "courier"
    joined = (site / FOLDER).exists()
    if insecure:
        if joined:
            raise ConfigError(
                f"--insecure: {site} belongs to a consortium, and its courier speaks TLS only; "
                "leave --insecure out"
            )
        if superlink is None:
            raise ConfigError("--insecure: needs --superlink HOST:PORT")
        return CourierSettings(superlink, socket, home)
    identity = SiteIdentity.open(site)
    kit, key = identity.pinned.content, identity.node_key().absolute()
    where = superlink or f"{kit.gateway}:{kit.port}"
    authority = identity.authority.absolute()
    transport = ("--root-certificates", str(authority), "--auth-supernode-private-key", str(key))
    session = NodeSession(SuperLink(f"https://{where}", authority), key, home / "node.json")
    return CourierSettings(where, socket, home, transport, session)


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
    with held(settings.home, _TAKEN), until_signal() as stopped:
        own_port = free_port()
        unit = courier_unit(settings, own_port)
        sys.stdout.write(f"courier to {settings.superlink} for {settings.socket}, log {unit.log}\n")
        if unit.confine is None:
            sys.stdout.write(_UNCONFINED)
        sys.stdout.flush()
        supervise([unit], stopped, each=Liveness(unit, own_port).look)
    return 0


def courier_unit(settings: CourierSettings, own_port: int) -> Unit:
    """Return the courier's programs; nothing is started.

    Args:
        settings: Of the courier.
        own_port: Where the SuperNode listens for its SuperExec, on loopback.

    Raises:
        ConfigError: If Flower is not installed.
        StorageError: If the secret between them cannot be made.
    """
    secret, port = str(secret_file(settings.home / "superexec.secret")), str(own_port)
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
    place = settings.home / "tmp"
    with storage_errors(f"{place}: cannot be made"):
        (settings.home / "flower").mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
    own = environment(settings.home / "flower", TMPDIR=str(place.absolute()))
    before = settings.session.end if settings.session else None
    confine = Confinement(allowed(settings, own_port)).enter if is_possible() else None
    log = settings.home / "courier.log"
    return Unit("courier", [supernode, superexec], log, own, before, confine)


def allowed(settings: CourierSettings, own_port: int) -> Allowed:
    """Return what the courier's programs may do, and so whatever the coordinator sends them.

    They read the installed programs, the gateway's authority and the node's key, write their own
    folders, and reach the gateway, or the proxy before it, and the agent's socket.

    Args:
        settings: Of the courier.
        own_port: Where the SuperNode listens for its SuperExec.
    """
    packages = [_ROOT / name for name in ("client", "shared")]
    shown = [Path(word) for word in settings.transport if word.startswith("/")]
    programs = [Path(sys.prefix), Path(sys.base_prefix), *map(Path, (*_SYSTEM, *_MACHINE))]
    proxies = [urlsplit(os.environ.get(name, "")).port for name in _PROXIES]
    gateway = int(settings.superlink.rpartition(":")[2])
    return Allowed(
        read=[*programs, *packages, *shown, settings.home / "superexec.secret"],
        listed=[_ROOT],
        write=[settings.home / "flower", settings.home / "tmp", *map(Path, _DEVICES)],
        connect=[gateway, own_port, *(port for port in proxies if port), _NAMES],
        listen=[own_port],
    )
