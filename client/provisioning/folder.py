"""A site's identity on its disk, ``<home>/identity``.

```
keys/<enrolment>/signing.key    signs the site's replies; mode 0600, never leaves
keys/<enrolment>/node.key       of the site's Flower node; mode 0600, never leaves
keys/<enrolment>/site.json      their public part, which was handed over
kit.json                        what came back: names the keys in use, pins the consortium
ca.crt                          the kit's authority, for Flower
```

The kit alone decides which keys are in use, so that changing it changes everything in one step.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from shared.errors import IdentityError
from shared.security.consortium import (
    Kit,
    SitePart,
    consortium_fingerprint,
    read_kit,
    read_site_part,
)
from shared.security.documents import Document
from shared.security.node_keys import NodeKey
from shared.security.signing import SigningKey

FOLDER: Final = "identity"
"""Its name in the site's folder."""


@dataclass(frozen=True)
class SiteKeys:
    """A site's keys on its disk.

    Attributes:
        folder: Where they are.
        part: Their public part.
    """

    folder: Path
    part: SitePart

    @property
    def signing(self) -> Path:
        """Return the file of the key that signs replies."""
        return self.folder / "signing.key"

    @property
    def node(self) -> Path:
        """Return the file of the Flower node's key."""
        return self.folder / "node.key"

    @property
    def public(self) -> Path:
        """Return the file of the public part."""
        return self.folder / "site.json"

    @classmethod
    def open(cls, folder: Path) -> "SiteKeys":
        """Open keys and see that they belong together.

        Raises:
            IdentityError: If one is missing, damaged, another one's, or open to others.
        """
        keys = cls(folder, read_site_part(folder / "site.json"))
        signing, node = keys.load_signing(), NodeKey.load(keys.node)
        if (signing.public, node.public) != (keys.part.signing_key, keys.part.node_key):
            raise IdentityError(
                f"{folder}: the private keys are not those of its site.json; put back the files "
                "that were made together, or make new ones with `consilia client rotate`"
            )
        return keys

    def load_signing(self) -> SigningKey:
        """Return the key that signs replies.

        Raises:
            IdentityError: If it is missing, damaged, or open to others.
        """
        return SigningKey.load(self.signing, "the site's signing key")


@dataclass(frozen=True)
class SiteIdentity:
    """A site that made its keys, and perhaps joined a consortium.

    Attributes:
        folder: Its identity's folder.
        kit: The pinned kit; ``None`` before it joined.
    """

    folder: Path
    kit: Document[Kit] | None

    @classmethod
    def open(cls, home: Path, now: datetime | None = None) -> "SiteIdentity":
        """Open a site's identity.

        Args:
            home: The site's folder.
            now: For the authority's certificate; the present if not given.

        Raises:
            IdentityError: If there is none, or its kit is damaged.
        """
        folder = home / FOLDER
        if not folder.is_dir():
            raise IdentityError(
                f"{home}: holds no site's identity; make one with `consilia client init {home}`, "
                "or name its folder with --site"
            )
        path = folder / "kit.json"
        kit = read_kit(path, now or datetime.now(UTC)) if path.exists() else None
        return cls(folder, kit)

    @property
    def pinned(self) -> Document[Kit]:
        """Return the kit.

        Raises:
            IdentityError: If the site has not joined.
        """
        if self.kit is None:
            raise IdentityError(
                f"{self.folder}: the site has not joined a consortium; hand its public part to the "
                "coordinator, and join with the kit that comes back: `consilia client join KIT`"
            )
        return self.kit

    @property
    def coordinator(self) -> str:
        """Return the public key that must sign every request."""
        return self.pinned.signer

    @property
    def fingerprint(self) -> str:
        """Return what coordinator and site read to one another."""
        kit = self.pinned
        return consortium_fingerprint(kit.content.consortium, kit.signer, kit.content.authority)

    @property
    def authority(self) -> Path:
        """Return the file of the only certificate that the site trusts."""
        return self.folder / "ca.crt"

    def keys_in_use(self) -> SiteKeys:
        """Return the keys that the kit names.

        Raises:
            IdentityError: If the site has not joined, or they are damaged or open to others.
        """
        kit = self.pinned.content
        keys = SiteKeys.open(self.folder / "keys" / kit.enrolment)
        if not kit.is_for(keys.part):
            raise IdentityError(
                f"{keys.folder}: are not the keys that the consortium admitted; put back the files "
                "that were made with them, or make new ones with `consilia client rotate`"
            )
        return keys

    def node_key(self) -> Path:
        """Return the file of the node's key that the kit names.

        Whoever only connects needs no other key: a courier's folder may hold this one alone.

        Raises:
            IdentityError: If the site has not joined, or it is damaged or another one.
        """
        kit = self.pinned.content
        folder = self.folder / "keys" / kit.enrolment
        keys = SiteKeys(folder, read_site_part(folder / "site.json"))
        if not kit.is_for(keys.part) or NodeKey.load(keys.node).public != keys.part.node_key:
            raise IdentityError(
                f"{keys.node}: is not the key that the consortium admitted; put back the file that "
                "was made with the kit, or make new keys with `consilia client rotate`"
            )
        return keys.node

    def all_keys(self) -> list[SiteKeys]:
        """Return all keys that the site made and has not put away.

        Raises:
            IdentityError: If one is damaged, or open to others.
        """
        return [SiteKeys.open(folder) for folder in sorted((self.folder / "keys").iterdir())]
