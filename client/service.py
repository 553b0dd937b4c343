"""The one call between courier and agent: bytes in, bytes out, over a Unix-domain socket.

The method is generic, so the courier needs neither generated code nor anything of ours but
this file. The socket is a file that only its owner can open: the process that has a network
talks to the process that can see records, and to nothing else.
"""

import contextlib
import logging
import os
import socket as sockets
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import grpc

from shared.errors import ConfigError, WireError

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 512 * 2**20
"""Bytes of the largest body in either direction."""

_SERVICE = "consilia.Agent"
_METHOD = "Handle"
_LONGEST_PATH = 100  # Linux allows 107 bytes, macOS 103
_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class AgentChannel(Protocol):
    """A way to a site's agent: the agent itself in a simulation, a socket in a deployment."""

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request."""
        ...


class SocketChannel:
    """The courier's end of the socket.

    Args:
        path: The agent's socket.
        timeout: Seconds that one request may take; an agent's process answers long before.
        patience: Seconds to wait for an agent that is not there; a request that an agent
            left unanswered is asked again, because requests may be repeated.
    """

    def __init__(self, path: Path, timeout: float = 600.0, patience: float = 30.0) -> None:
        self._address = _address(path)
        self._timeout = timeout
        self._patience = patience

    def handle(self, body: bytes) -> bytes:
        """Return the agent's answer to a request.

        Raises:
            WireError: If no agent answers.
        """
        give_up = time.monotonic() + self._patience
        with grpc.insecure_channel(self._address, options=_OPTIONS) as channel:
            call = channel.unary_unary(f"/{_SERVICE}/{_METHOD}")
            while True:
                asked = time.monotonic()
                try:
                    return bytes(call(body, timeout=self._timeout))
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise WireError(f"agent: {error.code().name.lower()}") from None
                    # An agent that worked on it and then fell gets the whole patience anew.
                    if time.monotonic() - asked > 1.0:
                        give_up = time.monotonic() + self._patience
                    if time.monotonic() > give_up:
                        raise WireError("agent: nobody answers at its socket") from None
                    time.sleep(0.1)


@contextlib.contextmanager
def serve(agent: AgentChannel, path: Path, at_once: int = 1) -> Iterator[None]:
    """Serve an agent at a socket while the block runs.

    Args:
        agent: Answers the requests.
        path: The socket; it is made readable and writable by its owner only. One that a
            killed agent left behind is replaced.
        at_once: Requests that may wait for their answer at the same time.

    Raises:
        ConfigError: If the path is too long, no socket, or in use by another agent.
    """
    _make_room(path)
    server = grpc.server(ThreadPoolExecutor(max_workers=at_once), options=_OPTIONS)

    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return agent.handle(body)
        except Exception as error:
            # gRPC would send and log the text of the error, which may quote a record.
            log.error("the agent failed: %s", type(error).__name__)  # noqa: TRY400
            context.abort(grpc.StatusCode.INTERNAL, "the agent failed")
            raise AssertionError("abort raises") from None

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),)
    )
    with _only_for_the_owner():
        bound = _bind(server, path)
    if not bound:
        raise ConfigError(f"{path}: cannot be made; expected a writable folder for the socket")
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()
        path.unlink(missing_ok=True)


def check_socket_path(path: Path) -> None:
    """Raise unless a socket can have this path.

    Raises:
        ConfigError: If it is too long, or has characters that Flower cannot hand on.
    """
    _address(path)
    if any(character in str(path) for character in "\"'\\\n"):
        raise ConfigError(f"{path}: choose a path without quotation marks for the socket")


def _bind(server: grpc.Server, path: Path) -> bool:
    try:
        server.add_insecure_port(_address(path))
    except RuntimeError:
        return False
    path.chmod(0o600)
    return True


def _address(path: Path) -> str:
    absolute = path.absolute()
    if len(os.fsencode(absolute)) > _LONGEST_PATH:
        raise ConfigError(
            f"{absolute}: a socket's path may have {_LONGEST_PATH} bytes at most; choose a "
            "shorter folder"
        )
    return f"unix:{absolute}"


def _make_room(path: Path) -> None:
    """Remove the socket of an agent that was killed, and nothing else."""
    _address(path)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"{path}: is a file, not a socket; choose another path")
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise ConfigError(f"{path}: another agent is running here; stop it first")


_UMASK = threading.Lock()


@contextlib.contextmanager
def _only_for_the_owner() -> Iterator[None]:
    """Make the socket with mode 0600 from its first moment on."""
    with _UMASK:
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)
