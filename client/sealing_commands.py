"""``consilia client seal``, ``rekey`` and ``open``: what they do and say."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from client.sealed_state import change_key, read_sealed, seal_state
from client.settings import load_agent
from client.site_key import KeySource
from shared.errors import ConfigError
from shared.files import storage_errors, write_new
from shared.processes import forbid_dumps

SITE_FILE = "site.toml"


def seal_command(site: Path, *, as_json: bool) -> None:
    """Seal a site's state with the key that its ``site.toml`` names.

    Raises:
        ConfigError: If it names none, or an agent is at work.
        IdentityError: If the key cannot be had, or is another one.
        StorageError: If a file cannot be written; those before it are sealed.
    """
    settings = load_agent(site / SITE_FILE)
    forbid_dumps()
    count = seal_state(settings)
    name, key = settings.site.name, settings.sealing.shown if settings.sealing else ""
    lines = [
        f"Sealed the state of {name} with {key}: {_files(count)} now",
        "Keep a copy of the key, and one of keyring.json, each in a safe place of its own: without "
        "both nothing can be opened",
    ]
    if count:
        lines.append(
            "What stood here in the clear may still be on the disk, and is in older backups"
        )
    _say({"site": name, "key": key, "sealed": count}, lines, as_json=as_json)


def rekey_command(
    site: Path,
    key_file: Path | None,
    passphrase: str | None,
    credential: str | None,
    *,
    as_json: bool,
) -> None:
    """Wrap a site's data keys with another key.

    Raises:
        ConfigError: If not exactly one new key is named, ``site.toml`` names none, or an agent is
            at work.
        IdentityError: If one of the keys cannot be had, or the old one is another one.
        StorageError: If it cannot be written; then the old key still holds.
    """
    settings = load_agent(site / SITE_FILE)
    where = "--key-file, --passphrase, --credential"
    file = key_file.absolute() if key_file else None
    new = KeySource.one_of(where, settings.site.state, file, passphrase, credential)
    forbid_dumps()
    count = change_key(settings, new)
    name = settings.site.name
    lines = [
        f"Wrapped {count} data keys of {name} anew; they open with {new.shown}, and no more with "
        f"{settings.sealing.shown if settings.sealing else ''}",
        f"Next: {new.line} in [sealing] of {site / SITE_FILE}, then start the agent",
        "Destroy old copies of keyring.json: the key before still opens them",
    ]
    facts = {"site": name, "key": new.shown, "line": new.line, "wrapped": count}
    _say(facts, lines, as_json=as_json)


def open_command(site: Path, file: Path, to: Path, *, as_json: bool) -> None:
    """Write what a sealed file holds to a new file, in the clear and for its owner only.

    Raises:
        ConfigError: If the site's state is not sealed, the file is none of it, or the new one is
            there already.
        IdentityError: If the key cannot be had or is another one, or the file cannot be opened.
        StorageError: If it cannot be written.
    """
    settings = load_agent(site / SITE_FILE)
    if to.exists():
        raise ConfigError(f"--to {to}: is there already; name a file that is not")
    forbid_dumps()
    content = read_sealed(settings, file.absolute())
    with storage_errors(f"{to}: could not be written"):
        write_new(to, content, mode=0o600)
    facts = {"file": str(file), "to": str(to), "bytes": len(content)}
    _say(facts, [f"Wrote {len(content)} bytes in the clear to {to}"], as_json=as_json)


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _say(facts: Mapping[str, object], lines: list[str], *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(facts) if as_json else "\n".join(lines)) + "\n")
