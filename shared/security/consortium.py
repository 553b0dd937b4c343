"""What a consortium is made of: its sites' public parts, its roster, the kit of a site.

All are documents (``shared.security.documents``). A site's public part is signed by its own key,
roster and kit by the coordinator's.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, field_validator

from shared.errors import IdentityError
from shared.security.canonical import canonical
from shared.security.certificates import check_authority
from shared.security.documents import Content, Document, read_document
from shared.security.node_keys import is_node_key
from shared.security.signing import fingerprint

NAME_RULE: Final = "1 to 63 of a-z, 0-9 and '-', not '-' first"
_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"^({_LABEL}\.)*{_LABEL}$|^[0-9A-Fa-f:]{{2,45}}$"

Name = Annotated[str, Field(pattern=_NAME, description=NAME_RULE)]
Host = Annotated[str, Field(pattern=_HOST, max_length=253, description="a host name or address")]
Port = Annotated[int, Field(ge=1, le=65535)]
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")]
Number = Annotated[
    str, Field(pattern=r"^[0-9a-f]{32}$", description="32 hexadecimal digits, by chance")
]


class _WithKeys(Content):
    """A site's public keys.

    Attributes:
        enrolment: Drawn with the keys; admits once.
        signing_key: Of the site's replies, Ed25519.
        node_key: Of the site's Flower node, OpenSSH.
    """

    enrolment: Number
    signing_key: PublicKey
    node_key: Annotated[str, Field(max_length=400)]

    @field_validator("node_key")
    @classmethod
    def _is_node_key(cls, value: str) -> str:
        if not is_node_key(value):
            raise ValueError("expected the public key of a Flower node, ecdsa-sha2-nistp384 ...")
        return value


class SitePart(_WithKeys):
    """The public part of a site's identity, which it hands to the coordinator."""

    name: Name
    created: AwareDatetime

    @property
    def fingerprint(self) -> str:
        """What site and coordinator read to one another."""
        said = {"name": self.name, "signing_key": self.signing_key, "node_key": self.node_key}
        return fingerprint(canonical("site fingerprint 1", said))


class MemberKeys(_WithKeys):
    """Keys of a member of the consortium.

    Attributes:
        admitted: When.
        until: They count no longer from then on; without end if ``None``.
    """

    admitted: AwareDatetime
    until: AwareDatetime | None = None

    def count(self, now: datetime) -> bool:
        """Return whether the keys count at a moment."""
        return self.until is None or now < self.until


class Member(Content):
    """A site of the consortium.

    Attributes:
        name: Its name.
        status: A revoked site's name and keys are never used again.
        keys: The newest last.
    """

    name: Name
    status: Literal["active", "revoked"] = "active"
    keys: Annotated[tuple[MemberKeys, ...], Field(min_length=1)]

    def signing_keys(self, now: datetime) -> tuple[str, ...]:
        """Return the keys that may sign for the site at a moment."""
        if self.status == "revoked":
            return ()
        return tuple(keys.signing_key for keys in self.keys if keys.count(now))


class Roster(Content):
    """All sites that were ever admitted.

    Attributes:
        consortium: Number of the consortium.
        edition: Counts changes; a site never goes back to an earlier one.
        members: In the order of their admission.
    """

    consortium: Number
    edition: Annotated[int, Field(ge=1)]
    members: tuple[Member, ...] = ()

    def member(self, name: str) -> Member | None:
        """Return a member by its name."""
        return next((member for member in self.members if member.name == name), None)


class Consortium(Content):
    """What the coordinator decided at the beginning.

    Attributes:
        number: Drawn by chance; names may be alike.
        name: For people.
        hosts: Where sites reach the gateway; the first one stands in kits.
        port: Of the gateway.
        created: When.
    """

    number: Number
    name: Name
    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    port: Port = 443
    created: AwareDatetime


class Kit(Content):
    """What a site needs to take part; it holds no secret.

    Attributes:
        consortium: Number of the consortium.
        consortium_name: For people.
        site: For whom it is.
        enrolment: Which of the site's keys were admitted.
        gateway: Host that the site connects to.
        port: Its port.
        authority: The only certificate that the site trusts, PEM.
        roster: Who else takes part.
        created: When.
    """

    consortium: Number
    consortium_name: Name
    site: Name
    enrolment: Number
    gateway: Host
    port: Port
    authority: Annotated[str, Field(max_length=10_000)]
    roster: Roster
    created: AwareDatetime

    def is_for(self, part: SitePart) -> bool:
        """Return whether the kit is for a site's keys."""
        member = self.roster.member(part.name)
        admitted = {keys.enrolment: keys for keys in member.keys} if member else {}
        keys = admitted.get(part.enrolment)
        return (
            keys is not None
            and (self.site, self.enrolment) == (part.name, part.enrolment)
            and (keys.signing_key, keys.node_key) == (part.signing_key, part.node_key)
        )


SITE_FORMS: Final[Mapping[int, type[SitePart]]] = {1: SitePart}
ROSTER_FORMS: Final[Mapping[int, type[Roster]]] = {1: Roster}
CONSORTIUM_FORMS: Final[Mapping[int, type[Consortium]]] = {1: Consortium}
KIT_FORMS: Final[Mapping[int, type[Kit]]] = {1: Kit}


def consortium_fingerprint(number: str, coordinator: str, authority: str) -> str:
    """Return what coordinator and site read to one another before the site joins.

    Args:
        number: Of the consortium.
        coordinator: The coordinator's public key.
        authority: The authority's certificate, PEM.
    """
    said = {"number": number, "coordinator": coordinator, "authority": authority}
    return fingerprint(canonical("consortium fingerprint 1", said))


def read_site_part(path: Path) -> SitePart:
    """Read a site's public part.

    Raises:
        IdentityError: If it is damaged, or not signed by the key that it names.
    """
    document = read_document(path, "site", SITE_FORMS)
    if document.signer != document.content.signing_key:
        raise IdentityError(
            f"{path}: is signed by another key than it names; expected the file that "
            "`consilia client init` wrote; ask the site for it again"
        )
    return document.content


def read_kit(path: Path, now: datetime) -> Document[Kit]:
    """Read a kit; whether its signer is the coordinator's key is for the caller to judge.

    Raises:
        IdentityError: If it is damaged, contradicts itself, or its authority does not count now.
    """
    document = read_document(path, "kit", KIT_FORMS)
    kit = document.content
    member = kit.roster.member(kit.site)
    known = member is not None and kit.enrolment in [keys.enrolment for keys in member.keys]
    if kit.roster.consortium != kit.consortium or not known:
        raise IdentityError(
            f"{path}: its roster does not name the site {kit.site} with the keys that the kit is "
            "for; ask the coordinator for a new kit (`consilia server kit`)"
        )
    check_authority(kit.authority.encode(), str(path), now)
    return document
