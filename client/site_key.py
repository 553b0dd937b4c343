"""Where the key comes from that wraps a site's data keys: never from the folder that it opens.

A file, a passphrase that is typed in or handed over through a file descriptor, or a credential of
systemd's. None of them ever stands in a command line or in the environment, where every process of
the machine or every child could read it.
"""

import getpass
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from shared.errors import ConfigError, IdentityError
from shared.security.private_files import read_private, write_secret
from shared.security.sealing import KEY_BYTES, key_of_passphrase, new_key

_LEAST_PASSPHRASE: Final = 12
_LONGEST_PASSPHRASE: Final = 4096
_HANDED: Final = "fd:"
_HOW: Final = r"ask|fd:([3-9]|[1-9][0-9]{1,4})"


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
    """A file with 64 hexadecimal digits, mode 0600, away from what it opens."""

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
    """A passphrase; the key is derived from it, slowly."""

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


@dataclass(frozen=True)
class KeySource:
    """Where a site says that its key is to be had: exactly one of these.

    Attributes:
        key_file: A file with the key.
        passphrase: ``ask``, or ``fd:`` and the number of a file descriptor.
        credential: Name of a credential of systemd's.
    """

    key_file: Path | None = None
    passphrase: str | None = None
    credential: str | None = None

    @classmethod
    def one_of(
        cls,
        where: str,
        state: Path,
        key_file: Path | None,
        passphrase: str | None,
        credential: str | None,
    ) -> "KeySource":
        """Return the source that is given.

        Args:
            where: What names it, for the message.
            state: What the key opens.
            key_file: Or ``None``.
            passphrase: Or ``None``.
            credential: Or ``None``.

        Raises:
            ConfigError: If it is not exactly one, the passphrase itself was given, or the key
                would lie beside what it opens.
        """
        given = [each for each in (key_file, passphrase, credential) if each is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{where}: {len(given)} keys are named; expected exactly one of key_file, "
                "passphrase and credential"
            )
        if passphrase is not None and not re.fullmatch(_HOW, passphrase):
            raise ConfigError(  # it may be the passphrase itself, which no message may show
                f"{where}: passphrase: expected ask or fd:N (N from 3), which say how it is "
                "handed over; the passphrase itself must stand in no file and no command"
            )
        if key_file is not None and key_file.resolve().is_relative_to(state.resolve()):
            raise ConfigError(
                f"{where}: key_file {key_file}: is inside of the state that it opens; expected a "
                "place that no copy of the state takes with it, such as another disk"
            )
        return cls(key_file, passphrase, credential)

    @property
    def asks(self) -> bool:
        """Whether somebody has to hand it over."""
        return self.passphrase is not None

    @property
    def shown(self) -> str:
        """Where it is, for people; never the key."""
        if self.key_file is not None:
            return f"the key in {self.key_file}"
        return "a passphrase" if self.asks else f"systemd's credential {self.credential}"

    @property
    def line(self) -> str:
        """The line that names it in the table ``[sealing]``."""
        if self.key_file is not None:
            return f"key_file = {json.dumps(str(self.key_file))}"
        if self.asks:
            return f'passphrase = "{self.passphrase}"'
        return f'credential = "{self.credential}"'

    def had(self, site: str, *, new: bool = False) -> SiteKey:
        """Return the key, asked for if need be.

        Args:
            site: The site's name, for the question.
            new: Nothing is sealed with it yet: a file is made if there is none, and a passphrase
                asked for twice.

        Raises:
            IdentityError: If it cannot be had.
            StorageError: If its file cannot be made.
        """
        if self.key_file is not None:
            missing = new and not self.key_file.exists()
            return KeyFile.make(self.key_file) if missing else KeyFile(self.key_file)
        if self.credential is not None:
            return Credential(self.credential)
        if self.passphrase is not None and self.passphrase.startswith(_HANDED):
            return handed_passphrase(int(self.passphrase.removeprefix(_HANDED)))
        return typed_passphrase(f"{'New passphrase' if new else 'Passphrase'} of {site}", twice=new)


def typed_passphrase(what: str, *, twice: bool = False) -> Passphrase:
    """Ask for a passphrase at the terminal, where it is not shown.

    Args:
        what: Which, such as ``Passphrase of site north``.
        twice: Ask again, so that a slip does not seal everything for ever.

    Raises:
        IdentityError: If there is no terminal, or the two differ.
    """
    if not sys.stdin.isatty():
        raise IdentityError(
            "the passphrase: there is no terminal to ask for it; give the program one, or hand it "
            'over with passphrase = "fd:3" in [sealing] and `3< FILE` behind the command'
        )
    text = getpass.getpass(f"{what}: ")
    if twice and getpass.getpass("Once more: ") != text:
        raise IdentityError("the passphrases differ; nothing was changed, run it again")
    return Passphrase(text)


def handed_passphrase(descriptor: int) -> Passphrase:
    """Read a passphrase from a file descriptor, up to its end or to the first line's, and close it.

    Raises:
        IdentityError: If there is nothing to read, or it is no text.
    """
    try:
        with os.fdopen(descriptor, "rb") as file:
            line = file.readline(_LONGEST_PASSPHRASE)
        return Passphrase(line.rstrip(b"\r\n").decode())
    except (OSError, ValueError):
        raise IdentityError(
            f"the passphrase: file descriptor {descriptor} cannot be read; expected one line of "
            f"text, as from `{descriptor}< FILE` behind the command"
        ) from None


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
