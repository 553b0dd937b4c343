"""A site's files at rest: sealed with data keys that one key of the site's wraps.

Every run has a data key of its own. All of them are in ``keyring.json``, wrapped with the key that
comes from outside of the folder: a file that only its owner can read, a passphrase, or a systemd
credential. Whoever takes the disk without that key has names of runs and sizes of files, and
nothing else. Changing the key wraps the data keys anew in one step, and touches no sealed file.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from client.site_key import SiteKey
from shared.errors import IdentityError
from shared.files import in_turn, write_atomic
from shared.security.canonical import read_json
from shared.security.sealing import (
    MARK_BYTES,
    SALT_BYTES,
    SealError,
    is_sealed,
    key_id,
    key_name_of,
    new_key,
    seal,
    unseal,
    unwrap,
    wrap,
)

KEYRING: Final = "keyring.json"
"""Name of the file with a site's data keys, in its state."""
_LOCK: Final = "keyring.lock"


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
                "`consilia client rekey`; if it is, the keyring is damaged: put it back from a "
                "backup; nothing was changed"
            )
        return cls(folder, ring, wrapping)

    @property
    def runs(self) -> int:
        """How many data keys there are."""
        return len(self._ring.keys)

    def write(self, path: Path, content: bytes, run: str, *, wait: bool = True) -> None:
        """Replace a file by sealed content, in one step.

        Args:
            path: The file, below the vault's folder.
            content: All of it, in the clear.
            run: Whose data key; made if there is none yet.
            wait: Whether it must survive a power cut; if not, nothing waits for the disk.

        Raises:
            IdentityError: If the run's data key cannot be had.
            StorageError: If it cannot be written; an older file is as it was.
        """
        sealed = seal(self._data_key(run), run, self._name(path), content)
        write_atomic(path, sealed, mode=0o600, wait=wait)

    def overwrite(self, path: Path, head: bytes, body: bytes, run: str) -> None:
        """Replace a file whose loss costs some time; it is never written over.

        Raises:
            IdentityError: If the run's data key cannot be had.
            StorageError: If it cannot be written; an older file is as it was.
        """
        self.write(path, head + body, run, wait=False)

    def read(self, path: Path, begins: bytes = b"") -> bytes:
        """Return what a sealed file holds; nothing if that begins in another way.

        Raises:
            FileNotFoundError: If it is not there.
            IdentityError: If it is not sealed, damaged, or not the file that it should be.
        """
        sealed = path.read_bytes()
        if not is_sealed(sealed):
            raise IdentityError(
                f"{path}: is not sealed, and this site's files are; if it is from before they "
                "were, stop the agent and run `consilia client seal`, or else remove it"
            )
        try:
            content = unseal(self._key_of(sealed), self._name(path), sealed)
        except SealError as error:
            raise IdentityError(
                f"{path}: cannot be opened ({error}); expected the file as this site sealed it; "
                "put it back from a backup, together with its keyring"
            ) from None
        return content if content.startswith(begins) else b""

    def rotate(self, new: SiteKey) -> None:
        """Wrap all data keys with another key, in one step; sealed files stay as they are.

        A process that is killed leaves either the old keyring or the new one. Afterwards the old
        key opens nothing any more, but for copies of the old keyring.

        Raises:
            IdentityError: If the new key cannot be had, or the keyring is damaged.
            StorageError: If it cannot be written; then the old key still holds.
        """
        with in_turn(self.folder / _LOCK):
            ring = self._current()
            salt = os.urandom(SALT_BYTES)
            wrapping = new.key(salt)
            found = {run: self._opened(ring, run) for run in ring.keys}
            keys = {run: wrap(wrapping, key, run).hex() for run, key in found.items()}
            changed = {"salt": salt.hex(), "site_key": key_id(wrapping), "keys": keys}
            ring = ring.model_copy(update=changed)
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

    def _key_of(self, sealed: bytes) -> bytes:
        run = key_name_of(sealed)
        if run not in self._ring.keys:
            self._ring = self._current()
        if run not in self._ring.keys:
            raise SealError("there is no data key for it in the keyring")
        return self._unwrapped(run)

    def _unwrapped(self, run: str) -> bytes:
        return self._opened(self._ring, run)

    def _opened(self, ring: _Keyring, run: str) -> bytes:
        try:
            return unwrap(self._wrapping, bytes.fromhex(ring.keys[run]), run)
        except SealError:
            raise IdentityError(
                f"{self.folder / KEYRING}: the data key of {run!r} is damaged; put the keyring "
                "back from a backup, without it that run's files cannot be opened"
            ) from None

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
            return is_sealed(file.read(MARK_BYTES))
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
