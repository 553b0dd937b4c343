"""A consortium begins: authority, certificate, the coordinator's key, an empty roster."""

import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from server.provisioning.folder import ConsortiumFolder, ConsortiumPaths
from server.provisioning.gateway import write_gateway
from shared.errors import ConfigError, IdentityError
from shared.files import replace_folder, storage_errors, write_atomic
from shared.security.certificates import Certified, check_server, new_authority, new_server
from shared.security.consortium import Consortium, Roster
from shared.security.documents import write_document
from shared.security.private_files import write_secret
from shared.security.signing import SigningKey
from shared.toml_files import first_problem

_LOOPBACK: Final = ("localhost", "127.0.0.1")
"""The gateway speaks TLS with the SuperLink too, by these names."""


def found(
    home: Path, name: str, hosts: Sequence[str], port: int, now: datetime
) -> ConsortiumFolder:
    """Make a consortium in a coordinator's folder, whole or not at all.

    Args:
        home: The coordinator's folder.
        name: Of the consortium.
        hosts: Where sites reach the gateway.
        port: Of the gateway.
        now: Aware of its time zone.

    Raises:
        IdentityError: If there is a consortium already; nothing is changed.
        ConfigError: If a name cannot be one.
        StorageError: If it cannot be written.
    """
    paths = ConsortiumPaths.of(home)
    if paths.folder.exists():
        raise IdentityError(
            f"{paths.folder}: holds a consortium already, and nothing was changed; choose another "
            "folder, or go on with `consilia server admit`"
        )
    consortium = _described(name, hosts, port, now)
    authority = new_authority(name, now)
    server = new_server(authority, name, _names(hosts), now)
    key = SigningKey.new()
    roster = Roster(consortium=consortium.number, edition=1)
    with replace_folder(paths.folder) as folder:
        folder.chmod(0o700)
        made = ConsortiumPaths(folder)
        with storage_errors(f"{folder}: cannot be made"):
            made.coordinator_key.parent.mkdir(mode=0o700)
        write_secret(made.coordinator_key, key.pem())
        write_secret(made.authority_key, authority.key)
        write_atomic(made.authority, authority.certificate)
        _write_server(made, server)
        write_atomic(made.consortium, write_document("consortium", 1, consortium, key))
        write_atomic(made.roster, write_document("roster", 1, roster, key))
        write_gateway(made.gateway, port)
    return ConsortiumFolder.open(home, now)


def renew_server(folder: ConsortiumFolder, hosts: Sequence[str], now: datetime) -> list[str]:
    """Make a new key and certificate for the gateway; no site notices.

    Args:
        folder: The consortium.
        hosts: Further hosts that the certificate is to be for.
        now: Aware of its time zone.

    Returns:
        The hosts that it is for.

    Raises:
        ConfigError: If a host cannot be one.
        IdentityError: If the authority's key is missing or damaged.
        StorageError: If it cannot be written; the files may then not match, and this is to be
            done again.
    """
    old = folder.consortium
    wanted = list(dict.fromkeys([*old.hosts, *hosts]))
    consortium = _described(old.name, wanted, old.port, old.created, old.number)
    server = new_server(folder.load_authority(), old.name, _names(wanted), now)
    host, where = wanted[0], str(folder.paths.server)
    check_server(server.certificate, folder.authority, host, where, now)
    with folder.changing():
        document = write_document("consortium", 1, consortium, folder.key)
        write_atomic(folder.paths.consortium, document)
        _write_server(folder.paths, server)
    return wanted


def _described(
    name: str, hosts: Sequence[str], port: int, created: datetime, number: str | None = None
) -> Consortium:
    try:
        return Consortium(
            number=number or secrets.token_hex(16),
            name=name,
            hosts=tuple(hosts),
            port=port,
            created=created,
        )
    except ValidationError as error:
        raise ConfigError(f"--{first_problem(error, Consortium)}") from None


def _names(hosts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*hosts, *_LOOPBACK]))


def _write_server(paths: ConsortiumPaths, server: Certified) -> None:
    write_atomic(paths.server_key, server.key, mode=0o600)
    write_atomic(paths.server, server.certificate)
