"""The commands of ``consilia server`` that make and change a consortium: what they say."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.provisioning.admission import Admission, admit, kit_for, revoke, rotate
from server.provisioning.folder import ConsortiumFolder
from server.provisioning.founding import found, renew_server
from shared.files import write_atomic
from shared.security.comparison import compare
from shared.security.consortium import read_site_part


def init_command(home: Path, name: str, hosts: Sequence[str], port: int, *, as_json: bool) -> None:
    """Make a consortium, and say what its sites will ask for."""
    folder = found(home, name, hosts, port, _now())
    facts = {
        "consortium": name,
        "number": folder.consortium.number,
        "fingerprint": folder.fingerprint,
        "folder": str(folder.paths.folder),
    }
    _say(
        facts,
        f"Made the consortium {name} in {folder.paths.folder}\n"
        f"Fingerprint {folder.fingerprint}\n"
        f"Keep {folder.paths.coordinator_key.parent} secret, and a copy of it in a safe place.\n"
        f"Next: consilia server admit FILE --home {home}",
        as_json=as_json,
    )


def admit_command(
    home: Path, file: Path, fingerprint: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Admit a site, once somebody has compared its fingerprint."""
    folder, part = ConsortiumFolder.open(home), read_site_part(file)
    compare(part.fingerprint, fingerprint, f"the site {part.name}")
    _say_admitted(folder, admit(folder, part, _now()), "Admitted", out, as_json=as_json)


def rotate_command(  # noqa: PLR0913 - its options
    home: Path,
    name: str,
    file: Path,
    fingerprint: str | None,
    overlap_days: float,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Give a site new keys, once somebody has compared their fingerprint."""
    folder, part = ConsortiumFolder.open(home), read_site_part(file)
    compare(part.fingerprint, fingerprint, f"the site {part.name}")
    admission = rotate(folder, name, part, timedelta(days=overlap_days), _now())
    _say_admitted(folder, admission, "New keys for", out, as_json=as_json)


def kit_command(home: Path, name: str, out: Path | None, *, as_json: bool) -> None:
    """Write a site's kit anew."""
    folder = ConsortiumFolder.open(home)
    _say_admitted(folder, kit_for(folder, name, _now()), "Kit of", out, as_json=as_json)


def revoke_command(home: Path, name: str) -> None:
    """Revoke a site."""
    folder = ConsortiumFolder.open(home)
    revoke(folder, name, _now())
    _say({}, f"Revoked {name}: nothing that it signs counts any more.", as_json=False)


def renew_command(home: Path, hosts: Sequence[str]) -> None:
    """Make a new certificate for the gateway."""
    folder = ConsortiumFolder.open(home)
    names = ", ".join(renew_server(folder, hosts, _now()))
    _say({}, f"New certificate for {names}; restart the gateway.", as_json=False)


def _say_admitted(
    folder: ConsortiumFolder, admission: Admission, what: str, out: Path | None, *, as_json: bool
) -> None:
    name, kit = admission.member.name, admission.kit
    if out is not None:
        write_atomic(out, kit.read_bytes())
        kit = out
    facts = {"site": name, "kit": str(kit), "fingerprint": folder.fingerprint}
    _say(
        facts,
        f"{what} {name}\nKit {kit}: hand it to the site; it holds no secret.\n"
        f"The site asks for the consortium's fingerprint: {folder.fingerprint}",
        as_json=as_json,
    )


def _say(facts: Mapping[str, object], text: str, *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")


def _now() -> datetime:
    return datetime.now(UTC)
