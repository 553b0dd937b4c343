"""The gateway as a program: nginx before the SuperLink, with the consortium's certificate."""

import os
import shutil
from pathlib import Path

from server.provisioning.folder import ConsortiumFolder
from server.provisioning.gateway import write_gateway
from shared.errors import ConfigError
from shared.processes import Unit

_PLACES = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian puts it, which is not on everybody's PATH."""


def gateway_unit(consortium: ConsortiumFolder, superlink_port: int, log: Path) -> Unit:
    """Return the gateway, its configuration written anew; nothing is started.

    Args:
        consortium: Whose gateway.
        superlink_port: Where the SuperLink listens, on loopback.
        log: Gets what nginx says.

    Raises:
        ConfigError: If nginx is not installed.
        StorageError: If the configuration cannot be written.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *_PLACES])
    nginx = shutil.which("nginx", path=path)
    if nginx is None:
        raise ConfigError(
            "nginx: not found; the gateway needs it: install it (on Debian: apt-get install "
            "nginx-light), or run the gateway elsewhere and give --part superlink --part superexec"
        )
    folder = consortium.paths.gateway.absolute()
    write_gateway(folder, consortium.consortium.port, superlink_port)
    command = [nginx, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]
    return Unit("gateway", [command], log, dict(os.environ))
