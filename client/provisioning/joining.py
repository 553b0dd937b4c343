"""A site makes its keys, hands over their public part, and joins with the kit that comes back."""

import secrets
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from client.provisioning.folder import FOLDER, SiteIdentity, SiteKeys
from shared.errors import ConfigError, IdentityError
from shared.files import replace_folder, storage_errors, write_atomic
from shared.security.consortium import Kit, SitePart, read_kit
from shared.security.documents import Document, write_document
from shared.security.node_keys import NodeKey
from shared.security.private_files import write_secret
from shared.security.signing import SigningKey
from shared.toml_files import first_problem

_SITE_FORM = 1


def begin(home: Path, name: str, now: datetime) -> SiteKeys:
    """Make a site's identity; its private keys are made here and never leave.

    Args:
        home: The site's folder.
        name: Of the site.
        now: Aware of its time zone.

    Raises:
        IdentityError: If there is one already; nothing is changed.
        ConfigError: If the name cannot be one.
        StorageError: If it cannot be written.
    """
    if (home / FOLDER).exists():
        raise IdentityError(
            f"{home / FOLDER}: holds a site's identity already, and nothing was changed; for new "
            "keys of the same site: `consilia client rotate`"
        )
    return _make_keys(home, name, now)


def renew(home: Path, now: datetime) -> SiteKeys:
    """Make new keys beside those in use, which stay in use until a kit names the new ones.

    Raises:
        IdentityError: If the site has not joined.
        StorageError: If they cannot be written.
    """
    identity = SiteIdentity.open(home, now)
    return _make_keys(home, identity.pinned.content.site, now)


def join(home: Path, kit: Path, now: datetime) -> SiteIdentity:
    """Join with a kit, or take a newer one; nothing is changed unless it is right.

    Args:
        home: The site's folder.
        kit: What came from the coordinator; somebody compares its fingerprint the first time.
        now: Aware of its time zone.

    Raises:
        IdentityError: If the kit is damaged, another site's or another consortium's, for keys
            that are not here, or older than the one in use.
        StorageError: If it cannot be written.
    """
    identity = SiteIdentity.open(home, now)
    found = read_kit(kit, now)
    _check_same_consortium(identity, found, kit)
    keys = _keys_for(identity, found.content, kit)
    authority = found.content.authority.encode()
    write_atomic(identity.authority, authority)
    write_atomic(identity.folder / "kit.json", _content_of(kit))
    _put_away_others(identity, keys)
    return replace(identity, kit=found)


def _make_keys(home: Path, name: str, now: datetime) -> SiteKeys:
    signing, node = SigningKey.new(), NodeKey.new()
    try:
        part = SitePart(
            name=name,
            enrolment=secrets.token_hex(16),
            signing_key=signing.public,
            node_key=node.public,
            created=now,
        )
    except ValidationError as error:
        raise ConfigError(f"--{first_problem(error, SitePart)}") from None
    folder = home / FOLDER / "keys" / part.enrolment
    with storage_errors(f"{home / FOLDER}: cannot be made"):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / FOLDER).chmod(0o700)
    with replace_folder(folder) as unfinished:
        unfinished.chmod(0o700)
        made = SiteKeys(unfinished, part)
        write_secret(made.signing, signing.pem())
        write_secret(made.node, node.pem())
        write_atomic(made.public, write_document("site", _SITE_FORM, part, signing))
    return SiteKeys.open(folder)


def _check_same_consortium(identity: SiteIdentity, found: Document[Kit], path: Path) -> None:
    if identity.kit is None:
        return
    mine, theirs = identity.kit.content, found.content
    if found.signer != identity.coordinator or theirs.consortium != mine.consortium:
        raise IdentityError(
            f"{path}: is the kit of another consortium ({theirs.consortium_name}); this site is in "
            f"{mine.consortium_name}; for a second consortium use another folder: "
            "`consilia client init DIR`"
        )
    if theirs.roster.edition < mine.roster.edition:
        raise IdentityError(
            f"{path}: is older (roster {theirs.roster.edition}) than the kit in use (roster "
            f"{mine.roster.edition}); ask the coordinator for a new one (`consilia server kit`)"
        )


def _keys_for(identity: SiteIdentity, kit: Kit, path: Path) -> SiteKeys:
    """Return the site's keys that a kit is for."""
    for keys in identity.all_keys():
        if kit.is_for(keys.part):
            return keys
    raise IdentityError(
        f"{path}: is for keys of site {kit.site} that are not here; expected the kit that came "
        "back for the public part that was made in this folder"
    )


def _content_of(path: Path) -> bytes:
    with storage_errors(f"{path}: cannot be read"):
        return path.read_bytes()


def _put_away_others(identity: SiteIdentity, used: SiteKeys) -> None:
    """Remove the keys that a newer kit replaced."""
    with storage_errors(f"{identity.folder}: old keys cannot be removed"):
        for folder in (identity.folder / "keys").iterdir():
            if folder != used.folder:
                shutil.rmtree(folder)
