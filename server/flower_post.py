"""Bodies to sites and back over Flower's public ``Grid``."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.serverapp import Grid

from server.post import Letter, Outgoing
from server.questions import UNAVAILABLE
from shared.errors import WireError
from shared.wire import body_of, sealed, to_message

_FLOWER_ERRORS = {
    1: "site-app-not-loaded",
    2: "site-error",
    3: "message-lost",
    4: "message-lost",
    5: UNAVAILABLE,
    8: "site-crashed",
}
"""Reason codes for Flower's error codes (``flwr.common.constant.ErrorCode``)."""

Given = TypeVar("Given")


def tell(error: Exception) -> None:
    """Note an error of Flower's in the ServerApp's log, without what it says."""
    sys.stderr.write(f"Flower could not do it now: {type(error).__name__}; tried again\n")


@dataclass
class FlowerPost:
    """Carries bodies over a Flower grid.

    Attributes:
        grid: Reaches the nodes.
        time_to_live: Seconds after which Flower may drop a message.
        trouble: Told of every error of Flower's, such as a SuperLink that is overloaded; then what
            was to be sent counts as not sent, and nothing as come. If not given it is raised.
    """

    grid: Grid
    time_to_live: float
    trouble: Callable[[Exception], None] | None = None
    _known: list[int] = field(default_factory=list, init=False)

    def nodes(self) -> list[int]:
        """Return the numbers of all nodes that are connected, as far as is known."""
        self._known = self._carried(self.grid.get_node_ids, self._known)
        return self._known

    def send(self, requests: Sequence[Outgoing]) -> list[str | None]:
        """Push requests to nodes, all in one go."""
        shared = {id(request.body.enclosure): request.body.enclosure for request in requests}
        sealed_once = {key: sealed(enclosure) for key, enclosure in shared.items()}
        messages = []
        for request in requests:
            header, enclosure = request.body.header, sealed_once[id(request.body.enclosure)]
            messages.append(
                to_message(header, request.node, request.kind, self.time_to_live, enclosure)
            )
        ids = self._carried(lambda: self.grid.push_messages(messages), ())
        # A grid that could push none of them returns an empty list.
        return [*ids] if len(ids) == len(requests) else [None] * len(requests)

    def collect(self, message_ids: Sequence[str]) -> list[Letter]:
        """Pull what has come back; Flower's error replies are known by what they reply to."""
        letters = []
        for message in self._carried(lambda: self.grid.pull_messages(message_ids), ()):
            message_id = message.metadata.reply_to_message_id
            if message.has_error():
                reason = _FLOWER_ERRORS.get(message.error.code, "flower-error")
                letters.append(Letter(message_id, None, reason))
                continue
            try:
                letters.append(Letter(message_id, body_of(message)))
            except WireError:
                letters.append(Letter(message_id, b""))  # no body either, so it is refused
        return letters

    def _carried(
        self, call: Callable[[], Iterable[Given]], otherwise: Sequence[Given]
    ) -> list[Given]:
        """Let Flower do something; a run that it has ended is no ``Exception`` of Flower's."""
        try:
            return list(call())
        except Exception as error:
            if self.trouble is None:
                raise
            self.trouble(error)
            return list(otherwise)
