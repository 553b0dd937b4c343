"""The gateway's configuration: nginx in front of the SuperLink, the only way in."""

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.files import storage_errors, write_atomic

SUPERLINK_PORT: Final = 8000
"""Where the SuperLink listens, on loopback."""

FLEET_CALLS: Final = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""What the nodes of sites ask of a SuperLink; nothing else is let through."""


def gateway_configuration(port: int, superlink_port: int = SUPERLINK_PORT) -> str:
    """Return nginx's configuration.

    Args:
        port: Where sites connect.
        superlink_port: Where the SuperLink listens, on loopback, with the consortium's TLS.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no page; all that is put in are numbers and constants
    )
    template = environment.get_template("nginx.conf.j2")
    return template.render(
        port=int(port), superlink_port=int(superlink_port), calls="|".join(FLEET_CALLS)
    )


def write_gateway(folder: Path, port: int, superlink_port: int = SUPERLINK_PORT) -> Path:
    """Write the configuration and the folders that nginx needs; return the file.

    Args:
        folder: From which nginx runs: ``nginx -p FOLDER -c nginx.conf``.
        port: Where sites connect.
        superlink_port: Where the SuperLink listens.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage_errors(f"{folder}: cannot be made"):
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
    path = folder / "nginx.conf"
    write_atomic(path, gateway_configuration(port, superlink_port).encode())
    return path
