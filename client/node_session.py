"""Ends a node's old session before its SuperNode starts again.

A SuperLink lets a node in once: one that was killed, and comes back, is refused until its
heartbeats have been missed for a minute. A signed call ends the old session at once, and tells
the coordinator that what it had been asked is lost.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from shared.errors import FlowerError
from shared.files import write_atomic
from shared.flower_calls import SuperLink
from shared.security.node_keys import NodeKey

_FOREIGN = 401
"""The SuperLink knows the key by another number, or not at all."""


@dataclass(frozen=True)
class NodeSession:
    """A node's session at the SuperLink.

    Attributes:
        gateway: Where the SuperLink is reached.
        key: File of the node's key.
        memory: File that remembers Flower's number of the node.
    """

    gateway: SuperLink
    key: Path
    memory: Path

    def end(self) -> None:
        """End a session that may still go on; Flower's number is learned on the way.

        Raises:
            FlowerError: If the gateway cannot be asked; the SuperNode will try for itself.
            IdentityError: If the key is damaged, or open to others.
            StorageError: If the number cannot be remembered.
        """
        key = NodeKey.load(self.key)
        number = self._remembered(key)
        if number is not None:
            try:
                self.gateway.deactivate(key, number)
            except FlowerError as error:
                known = error.status != _FOREIGN  # it had ended already, or nobody answers
            else:
                known = True
            if known:
                return
        # Only a node without a session can begin one, so this ends none of another process.
        number = self.gateway.activate(key)
        write_atomic(self.memory, json.dumps({"key": key.public, "number": number}).encode())
        self.gateway.deactivate(key, number)

    def _remembered(self, key: NodeKey) -> int | None:
        try:
            content = json.loads(self.memory.read_bytes())
            return int(content["number"]) if content["key"] == key.public else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
