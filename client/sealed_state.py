"""Which files of a site's state are private, and how they become and stay sealed.

Sealed is what was made from records: personal adapters, own factors, parts of the shared adapter,
the kept answer, the privacy ledger. In the clear stay the audit log, what was asked and withdrawn,
and digests: names of runs, numbers and fixed words, which commands of the site must be able to
read without its key. Prepared pictures are mapped into memory, which a sealed file cannot be: they
stay in memory, unless the site says that its disk is encrypted.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from client.settings import PIXELS, AgentSettings
from client.site_key import KeySource
from client.vault import KEYRING, Vault, sealed_file
from shared.errors import ConfigError, IdentityError
from shared.files import TEMPORARY, held

AGENT_AT_WORK: Final = "another agent works on this site's state; stop it first"
"""Why a site's state cannot be changed now."""

_PRIVATE: Final = ("answer", "held/*", "personal/*", "own-factor/*/*", "privacy/ledger")
_SEALED_LATER: Final = "before it was sealed"
"""Names the data key of files whose run nobody knows any more."""


@dataclass(frozen=True)
class Private:
    """The private files of a state.

    Attributes:
        sealed: Those that are sealed.
        clear: Those that are not, prepared pictures among them if they should be in memory.
        remains: What killed processes left half-written, which nobody will read.
    """

    sealed: tuple[Path, ...]
    clear: tuple[Path, ...]
    remains: tuple[Path, ...]


def private_files(settings: AgentSettings) -> Private:
    """Return a site's private files."""
    state = settings.site.state
    clear = list(_pictures(settings))
    sealed: list[Path] = []
    remains: list[Path] = []
    for path in sorted(path for pattern in _PRIVATE for path in _files(state, pattern)):
        if path.name.endswith(TEMPORARY):
            remains.append(path)
        else:
            (sealed if sealed_file(path) else clear).append(path)
    return Private(tuple(sealed), tuple(clear), tuple(remains))


def opened(settings: AgentSettings) -> AgentSettings:
    """Return a site's settings with the way to its private files, which are all kept that way.

    Call it while nobody else works on the state.

    Raises:
        ConfigError: If files are sealed and ``site.toml`` says nothing of it, or the other way
            round.
        IdentityError: If the key cannot be had, or is another one.
    """
    state, found = settings.site.state, private_files(settings)
    _remove(found.remains)
    if settings.sealing is None:
        if found.sealed or (state / KEYRING).exists():
            raise ConfigError(
                f"{state}: is sealed, and site.toml does not say with which key; expected the "
                "table [sealing] that it had, such as key_file = ..."
            )
        return settings
    if not (state / KEYRING).exists():
        raise _no_keyring(state, found)
    if found.clear:
        raise ConfigError(
            f"{state}: {len(found.clear)} private files are not sealed, {found.clear[0]} among "
            "them; run `consilia client seal`, which seals them and goes on where it was stopped"
        )
    vault = Vault.open(state, settings.sealing.had(settings.site.name))
    return replace(settings, site=replace(settings.site, keeping=vault))


def seal_state(settings: AgentSettings, count: Callable[[], None] = lambda: None) -> int:
    """Seal all private files; one after the other, each in one step, so that a kill does no harm.

    Args:
        settings: The site's.
        count: Called before each file.

    Returns:
        How many were sealed now.

    Raises:
        ConfigError: If the site names no key, or an agent is at work.
        IdentityError: If the key cannot be had, or is another one.
        StorageError: If a file cannot be written; those before it are sealed.
    """
    source, site = settings.sealing, settings.site
    if source is None:
        raise _no_table()
    with held(site.state, AGENT_AT_WORK):
        found = private_files(settings)
        if (site.state / KEYRING).exists():
            vault = Vault.open(site.state, source.had(site.name))
        elif found.sealed:
            raise _no_keyring(site.state, found)
        else:
            vault = Vault.create(site.state, source.had(site.name, new=True))
        _remove(found.remains)
        pictures = set(_pictures(settings))
        for path in found.clear:
            count()
            if path not in pictures:
                vault.write(path, path.read_bytes(), _SEALED_LATER)
        if pictures:
            shutil.rmtree(site.state / PIXELS)  # they are prepared again, in memory
    return len(found.clear)


def change_key(settings: AgentSettings, new: KeySource) -> int:
    """Wrap a site's data keys with another key; no sealed file is touched.

    Args:
        settings: The site's, which still name the key before.
        new: Where the new one is to be had; its file is made if there is none.

    Returns:
        How many data keys were wrapped.

    Raises:
        ConfigError: If the site names no key, or an agent is at work.
        IdentityError: If one of the keys cannot be had, or the old one is another one.
        StorageError: If it cannot be written; then the old key still holds.
    """
    if settings.sealing is None:
        raise _no_table()
    state, name = settings.site.state, settings.site.name
    with held(state, AGENT_AT_WORK):
        if not (state / KEYRING).exists():
            raise _no_keyring(state, private_files(settings))
        vault = Vault.open(state, settings.sealing.had(name))
        vault.rotate(new.had(name, new=True))
    return vault.runs


def read_sealed(settings: AgentSettings, path: Path) -> bytes:
    """Return what a sealed file of a site's state holds; an agent may be at work.

    Args:
        settings: The site's.
        path: Absolute.

    Raises:
        ConfigError: If the site names no key, or there is no such sealed file.
        IdentityError: If the key cannot be had or is another one, or the file cannot be opened.
    """
    source, state = settings.sealing, settings.site.state
    if source is None:
        raise _no_table()
    if path not in private_files(settings).sealed:
        raise ConfigError(
            f"{path}: is no sealed file of {state}; expected one of its personal adapters "
            "(personal/*), or another of its private files"
        )
    return Vault.open(state, source.had(settings.site.name)).read(path)


def _pictures(settings: AgentSettings) -> Iterator[Path]:
    """Yield prepared pictures that are on the disk and should not be."""
    if settings.site.pixels is None:
        yield from _files(settings.site.state, f"{PIXELS}/*")


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _files(state: Path, pattern: str) -> Iterator[Path]:
    return (path for path in state.glob(pattern) if path.is_file())


def _no_table() -> ConfigError:
    return ConfigError(
        "site.toml names no key; expected a table [sealing] with one of key_file, passphrase and "
        "credential, such as key_file = '/etc/consilia/north.key'"
    )


def _no_keyring(state: Path, found: Private) -> IdentityError:
    if found.sealed:
        return IdentityError(
            f"{state / KEYRING}: is missing, and {len(found.sealed)} files are sealed with its "
            "keys; put it back from a backup, without it they cannot be opened"
        )
    return IdentityError(
        f"{state / KEYRING}: is missing: nothing is sealed yet; run `consilia client seal` once, "
        "before the agent is started"
    )
