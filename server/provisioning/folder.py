"""The consortium's folder at the coordinator, ``<home>/consortium``.

```
consortium.json           number, name, hosts; signed by the coordinator
roster.json               every site that was ever admitted; signed, replaced whole
keys/                     ca.key, server.key, coordinator.key: secrets, mode 0600
certificates/             ca.crt, server.crt
nodes/<site>.pub          the newest node key of every active site, for the SuperLink
kits/<site>.kit.json      what was handed to the site last
gateway/nginx.conf        the gateway's configuration
```
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from shared.errors import IdentityError
from shared.files import storage_errors, write_atomic
from shared.latest import Latest
from shared.security.certificates import (
    Certified,
    check_authority,
    check_server,
    load_certified,
    read_certificate,
)
from shared.security.consortium import (
    CONSORTIUM_FORMS,
    ROSTER_FORMS,
    Consortium,
    Roster,
    consortium_fingerprint,
)
from shared.security.documents import read_document, write_document
from shared.security.signing import SigningKey

FOLDER: Final = "consortium"
"""Its name in the coordinator's folder."""

_FORM = 1
"""Version of the documents that are written here."""


@dataclass(frozen=True)
class ConsortiumPaths:
    """Where things are in a consortium's folder."""

    folder: Path

    @classmethod
    def of(cls, home: Path) -> "ConsortiumPaths":
        """Return the paths in a coordinator's folder."""
        return cls(home / FOLDER)

    @property
    def consortium(self) -> Path:
        """Return the consortium file."""
        return self.folder / "consortium.json"

    @property
    def roster(self) -> Path:
        """Return the roster."""
        return self.folder / "roster.json"

    @property
    def coordinator_key(self) -> Path:
        """Return the coordinator's signing key."""
        return self.folder / "keys" / "coordinator.key"

    @property
    def authority_key(self) -> Path:
        """Return the authority's private key."""
        return self.folder / "keys" / "ca.key"

    @property
    def authority(self) -> Path:
        """Return the authority's certificate."""
        return self.folder / "certificates" / "ca.crt"

    @property
    def server_key(self) -> Path:
        """Return the gateway's private key."""
        return self.folder / "keys" / "server.key"

    @property
    def server(self) -> Path:
        """Return the gateway's certificate."""
        return self.folder / "certificates" / "server.crt"

    @property
    def gateway(self) -> Path:
        """Return the folder from which nginx runs."""
        return self.folder / "gateway"

    def node(self, site: str) -> Path:
        """Return the file with a site's node key."""
        return self.folder / "nodes" / f"{site}.pub"

    def kit(self, site: str) -> Path:
        """Return a site's kit."""
        return self.folder / "kits" / f"{site}.kit.json"


@dataclass(frozen=True)
class ConsortiumFolder:
    """A consortium as its coordinator has it.

    Attributes:
        paths: Where things are.
        consortium: What was decided at the beginning.
        key: Signs requests, roster and kits.
        authority: The authority's certificate, PEM.
    """

    paths: ConsortiumPaths
    consortium: Consortium
    key: SigningKey
    authority: bytes
    _latest: Latest[Roster] = field(default_factory=Latest, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, home: Path, now: datetime | None = None) -> "ConsortiumFolder":
        """Open the consortium of a coordinator's folder.

        Args:
            home: The coordinator's folder.
            now: For the authority's certificate; the present if not given.

        Raises:
            IdentityError: If there is none, or its keys are damaged, foreign or open to others.
        """
        paths = ConsortiumPaths.of(home)
        if not paths.folder.is_dir():
            raise IdentityError(
                f"{home}: holds no consortium; make one with `consilia server init {home}`, or "
                "name its folder with --home"
            )
        key = SigningKey.load(paths.coordinator_key, "the coordinator's signing key")
        document = read_document(paths.consortium, "consortium", CONSORTIUM_FORMS)
        if document.signer != key.public:
            raise IdentityError(
                f"{paths.consortium}: was signed by another coordinator than the one of "
                f"{paths.coordinator_key}; put back the files that were made together"
            )
        authority = read_certificate(paths.authority, "the authority")
        check_authority(authority, str(paths.authority), now or datetime.now(UTC))
        return cls(paths, document.content, key, authority)

    @property
    def fingerprint(self) -> str:
        """Return what coordinator and site read to one another."""
        number, authority = self.consortium.number, self.authority.decode()
        return consortium_fingerprint(number, self.key.public, authority)

    def load_authority(self) -> Certified:
        """Return the authority with its private key.

        Raises:
            IdentityError: If the key is missing, damaged, another one's, or open to others.
        """
        return load_certified(self.paths.authority_key, self.paths.authority, "the authority")

    def check_server(self, now: datetime | None = None) -> None:
        """Raise unless the gateway's key and certificate are right for all of its hosts.

        Raises:
            IdentityError: Saying what is wrong with them.
        """
        paths = self.paths
        server = load_certified(paths.server_key, paths.server, "the server")
        for host in self.consortium.hosts:
            check_server(
                server.certificate, self.authority, host, str(paths.server), now or _present()
            )

    def roster(self) -> Roster:
        """Return the roster as it is now.

        Raises:
            IdentityError: If it is damaged, or not this consortium's.
        """
        path = self.paths.roster
        document = read_document(path, "roster", ROSTER_FORMS)
        mine = document.content.consortium == self.consortium.number
        if document.signer != self.key.public or not mine:
            raise IdentityError(
                f"{path}: is the roster of another consortium; put back the one of "
                f"{self.consortium.name}"
            )
        return document.content

    def write_roster(self, roster: Roster) -> None:
        """Replace the roster as a whole.

        Raises:
            StorageError: If it cannot be written; it is as it was.
        """
        write_atomic(self.paths.roster, write_document("roster", _FORM, roster, self.key))

    def signing_keys(self, site: str) -> tuple[str, ...]:
        """Return the keys that may sign for a site at this moment.

        Asked for every reply: the roster is read again when its file is another one.

        Raises:
            IdentityError: If the roster is damaged, or not this consortium's.
        """
        member = self._latest.get(_state_of(self.paths.roster), self.roster).member(site)
        return member.signing_keys(_present()) if member else ()

    @contextmanager
    def changing(self) -> Iterator[Roster]:
        """Hold the roster against other commands while it is changed; yields it as it is.

        Raises:
            StorageError: If the folder cannot be locked.
        """
        with storage_errors(f"{self.paths.folder}: cannot be locked; use a local disk"):
            lock = (self.paths.folder / "lock").open("a")
            fcntl.flock(lock, fcntl.LOCK_EX)
        with lock:
            yield self.roster()


def _state_of(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced; nothing, if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _present() -> datetime:
    return datetime.now(UTC)
