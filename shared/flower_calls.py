"""The few calls of Flower's HTTP API that no command of Flower's makes for us.

They rest on paths, header names and messages of the Flower version that is installed; a test
compares them with it.
"""

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
)
from google.protobuf.message import DecodeError, Message

from shared.errors import FlowerError
from shared.security.node_keys import NodeKey

_TYPE: Final = "application/protobuf"
_SECONDS: Final = 10.0
_LARGEST: Final = 64 * 2**20
_HEARTBEAT_SECONDS: Final = 30.0
"""As Flower's SuperNodes say it."""


@dataclass(frozen=True)
class Node:
    """A node that a SuperLink knows.

    Attributes:
        number: Flower's number for it.
        key: Its public key, PEM.
        status: ``registered``, ``online``, ``offline`` or ``unregistered``.
    """

    number: int
    key: bytes
    status: str


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink, or the gateway before it.

    Attributes:
        url: ``https://host:port``, or ``http://`` on loopback without a consortium.
        authority: File of the only certificate that is trusted; with ``https`` only.
    """

    url: str
    authority: Path | None = None
    _contexts: list[ssl.SSLContext] = field(default_factory=list, init=False, compare=False)

    def is_well(self, seconds: float = 5.0) -> bool:
        """Return whether it is there and well."""
        try:
            with self._open(urllib.request.Request(f"{self.url}/health"), seconds) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (OSError, ValueError):
            return False

    def nodes(self) -> list[Node]:
        """Return the nodes that it knows.

        Raises:
            FlowerError: If it does not answer.
        """
        answer = ListNodesResponse()
        self._call("control/list-nodes", ListNodesRequest(), answer)
        return [Node(n.node_id, n.public_key, n.status) for n in answer.nodes_info]

    def register(self, name: str, key: bytes) -> int:
        """Let a node in; return its number.

        Args:
            name: Of the site, for Flower's own listings.
            key: The node's public key, PEM.

        Raises:
            FlowerError: If the SuperLink does not take it.
        """
        answer = RegisterNodeResponse()
        self._call("control/register-node", RegisterNodeRequest(public_key=key, name=name), answer)
        return int(answer.node_id)

    def unregister(self, number: int) -> None:
        """Let a node in no more.

        Raises:
            FlowerError: If the SuperLink does not do it.
        """
        self._call("control/unregister-node", UnregisterNodeRequest(node_id=number), None)

    def activate(self, key: NodeKey) -> int:
        """Begin a node's session; return its number.

        Raises:
            FlowerError: If the key is unknown, or another session goes on (412).
        """
        answer = ActivateNodeResponse()
        request = ActivateNodeRequest(
            public_key=key.pem_public(), heartbeat_interval=_HEARTBEAT_SECONDS
        )
        self._call("fleet/activate-node", request, answer, key.signed_headers())
        return int(answer.node_id)

    def deactivate(self, key: NodeKey, number: int) -> None:
        """End a node's session.

        Raises:
            FlowerError: If there is none, or the number is not the key's.
        """
        request = DeactivateNodeRequest(node_id=number)
        self._call("fleet/deactivate-node", request, None, key.signed_headers())

    def _call(
        self,
        path: str,
        request: Message,
        answer: Message | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        own = {"content-type": _TYPE, "accept": _TYPE, **(headers or {})}
        url = f"{self.url}/v1/{path}"
        post = urllib.request.Request(url, request.SerializeToString(), own)  # noqa: S310 - our URL
        try:
            with self._open(post, _SECONDS) as got:
                content = got.read(_LARGEST)
            if answer is not None:
                answer.ParseFromString(content)
        except urllib.error.HTTPError as error:
            message = f"{url}: answered {error.code}; see the SuperLink's log"
            raise FlowerError(message, error.code) from None
        except (OSError, ValueError, DecodeError) as error:
            raise FlowerError(f"{url}: no answer ({type(error).__name__})", None) from None

    def _open(self, request: urllib.request.Request, seconds: float):  # type: ignore[no-untyped-def]  # noqa: ANN202 - urllib has no type for it
        if self.authority is None:
            return urllib.request.urlopen(request, timeout=seconds)  # noqa: S310 - our URL
        if not self._contexts:
            context = ssl.create_default_context(cafile=str(self.authority))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._contexts.append(context)
        return urllib.request.urlopen(request, timeout=seconds, context=self._contexts[0])  # noqa: S310
