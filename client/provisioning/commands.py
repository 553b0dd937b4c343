"""``consilia client init``, ``rotate`` and ``join``: what they do and say."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from client.provisioning.folder import SiteIdentity, SiteKeys
from client.provisioning.joining import begin, join, renew
from shared.files import write_atomic
from shared.security.comparison import compare
from shared.security.consortium import consortium_fingerprint, read_kit


def init_command(home: Path, name: str, out: Path | None, *, as_json: bool) -> None:
    """Make a site's keys, and write their public part to hand over."""
    _say_made(home, begin(home, name, _now()), out, as_json=as_json)


def rotate_command(home: Path, out: Path | None, *, as_json: bool) -> None:
    """Make new keys beside those in use, and write their public part to hand over."""
    _say_made(home, renew(home, _now()), out, as_json=as_json)


def join_command(home: Path, kit: Path, fingerprint: str | None, *, as_json: bool) -> None:
    """Join with a kit; the first time, once somebody has compared its fingerprint."""
    now = _now()
    identity = SiteIdentity.open(home, now)
    if identity.kit is None:
        found = read_kit(kit, now)
        number, authority = found.content.consortium, found.content.authority
        shown = consortium_fingerprint(number, found.signer, authority)
        compare(shown, fingerprint, "the coordinator")
    joined = join(home, kit, now)
    content = joined.pinned.content
    sites = [member.name for member in content.roster.members if member.status == "active"]
    facts = {
        "consortium": content.consortium_name,
        "site": content.site,
        "gateway": f"{content.gateway}:{content.port}",
        "fingerprint": joined.fingerprint,
        "sites": sites,
    }
    _say(
        facts,
        f"Site {content.site} is in the consortium {content.consortium_name} "
        f"({', '.join(sites)})\nGateway {content.gateway}:{content.port}",
        as_json=as_json,
    )


def _say_made(home: Path, keys: SiteKeys, out: Path | None, *, as_json: bool) -> None:
    part = keys.part
    file = out or home / f"{part.name}.site.json"
    write_atomic(file, keys.public.read_bytes())
    facts = {"site": part.name, "fingerprint": part.fingerprint, "file": str(file)}
    _say(
        facts,
        f"Made the keys of {part.name} in {keys.folder}; they never leave this machine\n"
        f"Fingerprint {part.fingerprint}\n"
        f"Hand {file} to the coordinator, and read the fingerprint to them over the phone\n"
        f"Next: consilia client join KIT --site {home}",
        as_json=as_json,
    )


def _say(facts: Mapping[str, object], text: str, *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")


def _now() -> datetime:
    return datetime.now(UTC)
