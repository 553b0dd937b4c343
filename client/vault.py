"""A site's files at rest: sealed with data keys that one key of the site's wraps.

Every run has a data key of its own. All of them are in ``keyring.json``, wrapped with the key that
comes from outside of the folder: a file that only its owner can read, a passphrase, or a systemd
credential. Whoever takes the disk without that key has names of runs and sizes of files, and
nothing else. Changing the key wraps the data keys anew in one step, and touches no sealed file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import IdentityError
from shared.files import in_turn, write_atomic
from shared.security.canonical import read_json
from shared.security.private_files import read_private, write_secret
from shared.security.sealing import (
    KEY_BYTES,
    SALT_BYTES,
    SealError,
    is_sealed,
    key_id,
    key_name_of,
    key_of_passphrase,
    new_key,
    seal,
    unseal,
    unwrap,
    wrap,
)

KEYRING: Final = "keyring.json"
_LOCK: Final = "keyring.lock"
_LEAST_PASSPHRASE: Final = 12


class SiteKey(Protocol):
    """Where the key comes from that wraps a site's data keys."""

    def key(self, salt: bytes) -> bytes:
        """Return the key, 32 bytes.

        Args:
            salt: The keyring's own, for keys that are derived.

        Raises:
            IdentityError: If it is missing, damaged, or open to others.
        """
        ...

    @property
    def shown(self) -> str:
        """Where it comes from, for messages; never the key."""
        ...


@dataclass(frozen=True)
class KeyFile:
    """A file with 64 hexadecimal digits, mode 0600."""

    path: Path

    def key(self, salt: bytes) -> bytes:  # noqa: ARG002 - the key is used as it is
        """Return the file's key."""
        return _hexadecimal(read_private(self.path, "the site's key"), str(self.path))

    @property
    def shown(self) -> str:
        """The file."""
        return str(self.path)

    @classmethod
    def make(cls, path: Path) -> "KeyFile":
        """Write a new key.

        Raises:
            IdentityError: If there is a file already; what it opens would be lost.
            StorageError: If it cannot be written.
        """
        if path.exists():
            raise IdentityError(
                f"{path}: is there already; what it opens would be lost with it, so name another "
                "file"
            )
        write_secret(path, new_key().hex().encode() + b"\n")
        return cls(path)


@dataclass(frozen=True)
class Passphrase:
    """What an operator types in when the site starts."""

    text: str = field(repr=False)

    def key(self, salt: bytes) -> bytes:
        """Return the key that is derived from the passphrase."""
        if len(self.text) < _LEAST_PASSPHRASE:
            raise IdentityError(
                f"the passphrase has {len(self.text)} characters; expected at least "
                f"{_LEAST_PASSPHRASE}, such as five words"
            )
        return key_of_passphrase(self.text, salt)

    @property
    def shown(self) -> str:
        """What it is."""
        return "the passphrase"


@dataclass(frozen=True)
class Credential:
    """A credential that systemd decrypts for the service (``LoadCredentialEncrypted=``)."""

    name: str
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def key(self, salt: bytes) -> bytes:  # noqa: ARG002 - the key is used as it is
        """Return the credential's key."""
        folder = self.environment.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise IdentityError(
                f"credential {self.name}: systemd gave none to this process; expected "
                f"LoadCredentialEncrypted={self.name} in the service's unit"
            )
        path = Path(folder) / self.name
        try:  # systemd keeps others out of the folder, and the file's mode is its own affair
            content = path.read_bytes()
        except OSError as error:
            raise IdentityError(
                f"credential {self.name}: cannot be read ({error.strerror}); expected "
                f"LoadCredentialEncrypted={self.name} in the service's unit"
            ) from None
        return _hexadecimal(content, f"credential {self.name}")

    @property
    def shown(self) -> str:
        """The credential's name."""
        return f"credential {self.name}"


class _Keyring(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    consilia: str
    version: int
    salt: str
    site_key: str
    """Identifies the key that wraps; says nothing of it."""
    keys: dict[str, str]
    """Data keys by name, wrapped."""


class Vault:
    """A folder whose files are sealed.

    Attributes:
        folder: All sealed files are below it, and known by their path from here: one that was
            moved does not open.
    """

    def __init__(self, folder: Path, ring: _Keyring, wrapping: bytes) -> None:
        self.folder = folder
        self._ring = ring
        self._wrapping = wrapping

    def __repr__(self) -> str:
        return f"Vault({str(self.folder)!r})"

    @classmethod
    def create(cls, folder: Path, site_key: SiteKey) -> "Vault":
        """Make the keyring of a folder that has none.

        Raises:
            IdentityError: If there is one, or the key cannot be had.
            StorageError: If it cannot be written.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with in_turn(folder / _LOCK):
            path = folder / KEYRING
            if path.exists():
                raise IdentityError(f"{path}: is there already; open it with the key that made it")
            salt = os.urandom(SALT_BYTES)
            wrapping = site_key.key(salt)
            ring = _Keyring(
                consilia="keyring", version=1, salt=salt.hex(), site_key=key_id(wrapping), keys={}
            )
            _write(path, ring)
        return cls(folder, ring, wrapping)

    @classmethod
    def open(cls, folder: Path, site_key: SiteKey) -> "Vault":
        """Open a folder's keyring.

        Raises:
            IdentityError: If there is none, it is damaged, or the key is another one.
        """
        ring = _read(folder / KEYRING)
        wrapping = site_key.key(bytes.fromhex(ring.salt))
        if key_id(wrapping) != ring.site_key:
            raise IdentityError(
                f"{site_key.shown}: is not the key that this site's files are sealed with "
                f"({folder / KEYRING}); expected the one that made them, or the one of the last "
                "rotation; nothing was changed"
            )
        return cls(folder, ring, wrapping)

    def seal(self, path: Path, content: bytes, run: str) -> None:
        """Replace a file by sealed content, in one step and on the disk.

        Args:
            path: The file, below the vault's folder.
            content: All of it, in the clear.
            run: Whose data key; made if there is none yet.

        Raises:
            StorageError: If it cannot be written; an older file is as it was.
        """
        sealed = seal(self._data_key(run), run, self._name(path), content)
        write_atomic(path, sealed, mode=0o600)

    def read(self, path: Path) -> bytes:
        """Return what a sealed file holds.

        Raises:
            FileNotFoundError: If it is not there.
            IdentityError: If it is not sealed, damaged, or not the file that it should be.
        """
        sealed = path.read_bytes()
        try:
            run = key_name_of(sealed)
            if run not in self._ring.keys:
                self._ring = self._current()
            return unseal(self._unwrapped(run), self._name(path), sealed)
        except (SealError, KeyError) as error:
            why = "no data key of that name" if isinstance(error, KeyError) else str(error)
            raise IdentityError(
                f"{path}: cannot be opened ({why}); expected the file as this site sealed it; put "
                "it back from a backup, together with its keyring"
            ) from None

    def rotate(self, new: SiteKey) -> None:
        """Wrap all data keys with another key, in one step; sealed files stay as they are.

        A process that is killed leaves either the old keyring or the new one. Afterwards the old
        key opens nothing any more, but for copies of the old keyring.

        Raises:
            IdentityError: If the new key cannot be had.
            StorageError: If it cannot be written; then the old key still holds.
        """
        with in_turn(self.folder / _LOCK):
            ring = self._current()
            wrapping = new.key(bytes.fromhex(ring.salt))
            keys = {
                run: wrap(wrapping, unwrap(self._wrapping, bytes.fromhex(old), run), run).hex()
                for run, old in ring.keys.items()
            }
            ring = ring.model_copy(update={"site_key": key_id(wrapping), "keys": keys})
            _write(self.folder / KEYRING, ring)
            self._ring, self._wrapping = ring, wrapping

    def _data_key(self, run: str) -> bytes:
        if run in self._ring.keys:
            return self._unwrapped(run)
        with in_turn(self.folder / _LOCK):
            ring = self._current()  # another process may have made it
            if run not in ring.keys:
                keys = {**ring.keys, run: wrap(self._wrapping, new_key(), run).hex()}
                ring = ring.model_copy(update={"keys": keys})
                _write(self.folder / KEYRING, ring)
            self._ring = ring
        return self._unwrapped(run)

    def _unwrapped(self, run: str) -> bytes:
        return unwrap(self._wrapping, bytes.fromhex(self._ring.keys[run]), run)

    def _current(self) -> _Keyring:
        """Return the keyring as it is on the disk.

        Raises:
            IdentityError: If another process has rotated the key since.
        """
        ring = _read(self.folder / KEYRING)
        if ring.site_key != self._ring.site_key:
            raise IdentityError(
                f"{self.folder / KEYRING}: another process has changed the site's key; start again "
                "with the new one"
            )
        return ring

    def _name(self, path: Path) -> str:
        return path.absolute().relative_to(self.folder.absolute()).as_posix()


def sealed_file(path: Path) -> bool:
    """Return whether a file is sealed; one that is not there is not."""
    try:
        with path.open("rb") as file:
            return is_sealed(file.read(64))
    except OSError:
        return False


def _read(path: Path) -> _Keyring:
    damaged = IdentityError(
        f"{path}: is damaged or of another version; expected a site's keyring as it was written; "
        "put it back from a backup, without it no sealed file can be opened"
    )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"{path}: the site's keyring cannot be read ({error.strerror}); put it back from a "
            "backup, without it no sealed file can be opened"
        ) from None
    try:
        tree: dict[str, Any] = read_json(content)
        ring = _Keyring.model_validate(tree)
        hexadecimal = [ring.salt, *ring.keys.values()]
        if (ring.consilia, ring.version) != ("keyring", 1) or not all(map(_is_hex, hexadecimal)):
            raise damaged
    except (ValueError, ValidationError):
        raise damaged from None
    return ring


def _write(path: Path, ring: _Keyring) -> None:
    write_atomic(path, (json.dumps(ring.model_dump(), indent=1) + "\n").encode(), mode=0o600)


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


def _hexadecimal(content: bytes, where: str) -> bytes:
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise IdentityError(
            f"{where}: expected a key of {2 * KEY_BYTES} hexadecimal digits; it is damaged or "
            "another file"
        )
    return key
