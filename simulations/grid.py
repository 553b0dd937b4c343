"""Flower's ``Grid`` inside one process: no SuperLink, no Ray, the same ClientApp and ServerApp.

Messages are carried out one after the other, in the order in which they were pushed, on one
worker thread, so that the round loop can watch its deadline while a site trains, and so that
a run repeats bit for bit. Replies can be pulled as soon as they are there.
"""

import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import client_app
from client.service import AgentChannel
from client.settings import SiteSettings
from shared.config import JobConfig
from shared.errors import ConsiliaError

log = logging.getLogger(__name__)

CLIENT_APP_FAILED = 2
"""Flower's error code for a ClientApp that raised an exception."""

Outcome = TypeVar("Outcome")

_REGISTRATION_SECONDS = 120.0
_ENDING_SECONDS = 60.0
_RUN = 1
_SITE = "site"


class LostMessageError(Exception):
    """Raised by a fault hook: the message, or its reply, is lost without a word."""


class LocalGrid(Grid):
    """A grid over agents in this process; node ids are 1..n by sorted name.

    Args:
        channels: The agent of every site, by name.
        fail: Called with every message on the worker thread, before the site sees it. What
            it raises becomes Flower's error reply; ``LostMessageError`` means no reply ever.
    """

    def __init__(
        self,
        channels: Mapping[str, AgentChannel],
        fail: Callable[[Message], None] | None = None,
    ) -> None:
        _identify()
        self._channels = dict(channels)
        self._names = dict(enumerate(sorted(channels), start=1))
        self._fail = fail
        self._app: ClientApp = client_app(self._connect)
        self._run = Run.create_empty(run_id=_RUN)
        self._ids = itertools.count(1)
        self._waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._replies: dict[str, Message] = {}
        self._news = threading.Condition()
        self._unseen = False
        self._closed = False
        self._worker: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, timeout: float = 1.0) -> None:
        """Drop what is waiting and stop after the message at hand.

        Args:
            timeout: Seconds to wait for the worker thread; it ends with the process anyway.
        """
        self._closed = True
        self._waiting.put(None)
        if self._worker is not None:
            self._worker.join(timeout)

    def node_name(self, node_id: int) -> str:
        """Return the site that a node stands for."""
        return self._names[node_id]

    def set_run(self, run: Run) -> None:
        """Set the run, as the interface wants it."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; the interface keeps this for older code."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return all nodes."""
        return list(self._names)

    def get_nodes(self) -> list[NodeInfo]:
        """Return all nodes with their names; they are always online."""
        return [NodeInfo(node_id=n, name=name, status="online") for n, name in self._names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and return their ids."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="sites", daemon=True)
            self._worker.start()
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            # Flower's own grids write the id here too; there is no public way.
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting.put(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, oldest first, and forget them."""
        wanted = set(message_ids)
        with self._news:
            self._unseen = False
            return [self._replies.pop(i) for i in list(self._replies) if i in wanted]

    def wait(self, timeout: float) -> None:
        """Wait until a reply has come since the last pull, or so many seconds have passed."""
        with self._news:
            self._news.wait_for(lambda: self._unseen, timeout)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and return the replies that come within ``timeout`` seconds."""
        missing = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while missing and (deadline is None or time.monotonic() < deadline):
            self.wait(0.1 if deadline is None else min(0.1, deadline - time.monotonic()))
            came = self.pull_messages(missing)
            replies += came
            missing -= {reply.metadata.reply_to_message_id for reply in came}
        return replies

    def _connect(self, context: Context) -> AgentChannel:
        return self._channels[str(context.node_config[_SITE])]

    def _work(self) -> None:
        while not self._closed:
            message = self._waiting.get()
            if message is None:
                return
            reply = self._carry_out(message)
            if reply is not None:
                with self._news:
                    self._replies[message.metadata.message_id] = reply
                    self._unseen = True
                    self._news.notify_all()

    def _carry_out(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        try:
            if self._fail is not None:
                self._fail(message)
            name = self._names[node]
            context = Context(self._run.run_id, node, {_SITE: name}, RecordDict(), {})
            return self._app(message, context)
        except LostMessageError:
            return None
        except Exception as error:
            # Only the type: the text of an error may quote a record.
            log.warning("node %d failed: %s", node, type(error).__name__)
            return Message(
                Error(code=CLIENT_APP_FAILED, reason=type(error).__name__), reply_to=message
            )


def _identify() -> None:
    """Give this process the identity that Flower's ``Message`` asks for outside of a run."""
    try:
        _ = TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id
    except RuntimeError:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, _RUN


class _WatchedGrid(Grid):
    """Flower's own grid, except that it ends the round loop once the run is interrupted."""

    def __init__(self, grid: Grid, interrupted: threading.Event) -> None:
        self._grid = grid
        self._interrupted = interrupted

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._check()
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._check()
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        self._check()
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt  # where the round loop would have met it in this process


def run_flower(
    settings: Sequence[SiteSettings],
    job: JobConfig,
    coordinate: Callable[[Grid], Outcome],
    gpus: int = 0,
) -> Outcome:
    """Coordinate a run over Flower's simulation engine; the sites live in Ray's actors.

    Args:
        settings: All sites; each becomes a node.
        job: The job.
        coordinate: The ServerApp's work, such as ``run_job`` with everything but the grid
            filled in; called on a thread of its own.
        gpus: GPUs of this machine to share among the actors; 0 for the CPU.

    Returns:
        What ``coordinate`` returned.

    Raises:
        ConfigError: If Ray is not installed.
        ConsiliaError: If Flower's engine ends before the run does; and whatever
            ``coordinate`` raises.
    """
    # Flower's engine and torch are loaded only for this, not for every LocalGrid.
    from flwr.simulation import run_simulation  # noqa: PLC0415
    from flwr.supercore import telemetry  # noqa: PLC0415

    from simulations.flower_engine import (  # noqa: PLC0415
        ActorSites,
        backend_config,
        check_ray,
        partitions,
        quiet_environment,
    )

    check_ray()
    os.environ.update(quiet_environment(job.simulation.threads))
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # Flower has read its variable already
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    sites = ActorSites(partitions(settings), job)
    interrupted, ended = threading.Event(), threading.Event()
    results: list[Outcome] = []
    failures: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        try:
            _await_nodes(grid, len(sites.settings))
            results.append(coordinate(_WatchedGrid(grid, interrupted)))
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            ended.set()

    courier = client_app(lambda context: sites.agent(int(str(context.node_config["partition-id"]))))
    config = backend_config(job, gpus, len(sites.settings))
    try:
        run_simulation(server_app, courier, len(sites.settings), backend_config=config)
    except BaseException:
        interrupted.set()
        ended.wait(_ENDING_SECONDS)
        if failures:
            raise failures[0] from None
        raise
    if failures:
        raise failures[0]
    if not results:
        raise ConsiliaError("Flower's simulation engine ended before the run did")
    return results[0]


def _await_nodes(grid: Grid, count: int) -> None:
    """Wait until Flower has registered every node; its main function may start earlier.

    Raises:
        ConsiliaError: If they do not come.
    """
    deadline = time.monotonic() + _REGISTRATION_SECONDS
    while len(list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise ConsiliaError(f"Flower's simulation engine did not register its {count} nodes")
        time.sleep(0.05)
