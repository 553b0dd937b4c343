"""What carries questions to sites and letters back; Flower's grid behind it, or a test's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.messages import RequestKind


@dataclass(frozen=True)
class Letter:
    """What came back for a message: a body, or the reason why there is none.

    ``refused`` is the reason why a body does not count, whatever it says.
    """

    message_id: str
    body: bytes | None
    failure: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Sheets:
    """A request's body: what is one site's own, and then what all sites have in common.

    The enclosure is one object for all, so that a round holds the adapter once however many
    sites it asks.
    """

    header: bytes
    enclosure: bytes

    def __len__(self) -> int:
        return len(self.header) + len(self.enclosure)

    def joined(self) -> bytes:
        """Return the body as it reaches the site."""
        return self.header + self.enclosure


@dataclass(frozen=True)
class Outgoing:
    """A request on its way to a node."""

    node: int
    kind: RequestKind
    body: Sheets


class Post(Protocol):
    """Carries bodies to nodes; Flower's grid behind ``FlowerPost``."""

    def nodes(self) -> list[int]:
        """Return the numbers of all nodes that are connected."""
        ...

    def send(self, requests: Sequence[Outgoing]) -> list[str | None]:
        """Send requests together; an id for each, ``None`` where it could not be sent."""
        ...

    def collect(self, message_ids: Sequence[str]) -> list[Letter]:
        """Return what has come back for these messages, without waiting."""
        ...
