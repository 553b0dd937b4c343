"""Flower's ``Grid`` inside one process: no SuperLink, no Ray, the same agents and ServerApp.

Messages are carried out in the order in which they were pushed, some sites at once, on one
worker thread, so that the round loop can watch its deadline while sites train, and so that a
run repeats bit for bit. Replies can be pulled as soon as they are there.
"""

import itertools
import logging
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.compute import give_threads_back
from client.service import AgentChannel
from client.together import NotReleasedError
from shared.errors import StorageError
from shared.wire import body_of, to_reply
from simulations.cohorts import cohorts
from simulations.startup import LANE

log = logging.getLogger(__name__)

CLIENT_APP_FAILED = 2
"""Flower's error code for a ClientApp that raised an exception."""

_RUN = 1


class LostMessageError(Exception):
    """Raised by a fault hook: the message, or its reply, is lost without a word."""


_Queue = queue.SimpleQueue[list[Message] | None]


@dataclass(frozen=True)
class Together:
    """Which sites answer at once, and how.

    Attributes:
        answer: Answers requests to channels, all at once, such as ``answer_together``.
        load: Samples that every site trains on in one step.
        samples: Sites whose samples together are no more than this answer at once.
        lanes: Which device plays a site, 0 if not given; devices work side by side.
    """

    answer: Callable[[Sequence[tuple[Any, bytes]]], list[bytes]]
    load: Mapping[str, int]
    samples: int
    lanes: Mapping[str, int] = field(default_factory=dict)


class SiteGrid(Grid):
    """What grids of sites have in common.

    Args:
        names: Of all sites; the first one's node id is 1.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict(enumerate(names, start=1))
        self._run = Run.create_empty(run_id=_RUN)
        self._ids = itertools.count(1)

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

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Wait until another reply has come, or so many seconds have passed."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and return the replies that come within ``timeout`` seconds."""
        missing = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while missing and (deadline is None or time.monotonic() < deadline):
            came = list(self.pull_messages(missing))
            replies += came
            missing -= {reply.metadata.reply_to_message_id for reply in came}
            if missing:
                self.wait(0.1 if deadline is None else min(0.1, deadline - time.monotonic()))
        return replies

    def _numbered(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages with ids of their own."""
        pushed = list(messages)
        for message in pushed:
            # Flower's own grids write the id here too; there is no public way.
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
        return pushed


class LocalGrid(SiteGrid):
    """A grid over agents in this process; node ids are 1..n by sorted name.

    Args:
        channels: The agent of every site, by name.
        together: Who answers at once; one after the other if not given.
        fail: Called with every message on the worker thread, before the site sees it. What
            it raises becomes Flower's error reply; ``LostMessageError`` means no reply ever.
    """

    def __init__(
        self,
        channels: Mapping[str, AgentChannel],
        together: Together | None = None,
        fail: Callable[[Message], None] | None = None,
    ) -> None:
        _identify()
        super().__init__(sorted(channels))
        self._channels = dict(channels)
        self._together = together
        self._fail = fail
        lanes = 1 + max(together.lanes.values(), default=0) if together else 1
        self._waiting: list[_Queue] = [queue.SimpleQueue() for _ in range(lanes)]
        self._replies: dict[str, Message] = {}
        self._news = threading.Condition()
        self._unseen = False
        self._closed = False
        self._workers: list[threading.Thread] = []

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
        for waiting in self._waiting:
            waiting.put(None)
        for worker in self._workers:
            worker.join(timeout)

    def node_name(self, node_id: int) -> str:
        """Return the site that a node stands for."""
        return self._names[node_id]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and return their ids; those of one push may be answered together."""
        if not self._workers:
            for lane, waiting in enumerate(self._waiting):
                name = f"{LANE}{lane}"
                worker = threading.Thread(
                    target=self._work, args=(waiting,), name=name, daemon=True
                )
                self._workers.append(worker)
                worker.start()
        pushed = self._numbered(messages)
        give_threads_back()  # sites work on a thread of their own
        for lane, cohort in self._cohorts(pushed):
            self._waiting[lane].put(cohort)
        return [message.metadata.message_id for message in pushed]

    def _cohorts(self, messages: Sequence[Message]) -> Iterator[tuple[int, list[Message]]]:
        """Yield messages that are answered at once: neighbours by name, each site once."""
        sites = [self._names.get(message.metadata.dst_node_id) for message in messages]
        named = {site: message for site, message in zip(sites, messages, strict=True) if site}
        # Two questions to one site, or one to a site that is not there, are asked one by one.
        if self._together is None or len(named) < len(messages):
            yield from ((0, [message]) for message in messages)
            return
        lane_of = self._together.lanes
        for lane in range(len(self._waiting)):
            own = [name for name in named if lane_of.get(name, 0) == lane]
            for names in cohorts(own, self._together.load, self._together.samples):
                yield lane, [named[name] for name in names]

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

    def _work(self, waiting: _Queue) -> None:
        while not self._closed:
            messages = waiting.get()
            if messages is None:
                return
            for message, reply in self._carry_out(messages):
                with self._news:
                    self._replies[message.metadata.message_id] = reply
                    self._unseen = True
                    self._news.notify_all()

    def _carry_out(self, messages: Sequence[Message]) -> Iterator[tuple[Message, Message]]:
        """Yield the replies to messages that are answered at once."""
        asked: list[Message] = []
        answers: Sequence[bytes | StorageError]
        for message in messages:
            try:
                if self._fail is not None:
                    self._fail(message)
            except LostMessageError:
                continue
            except Exception as error:
                yield message, _failed(message, error)
            else:
                asked.append(message)
        try:
            answers = self._answers(asked)
        except NotReleasedError as error:  # of some sites; the others have answered
            answers = error.answers
        except Exception as error:
            yield from ((message, _failed(message, error)) for message in asked)
            return
        for message, answer in zip(asked, answers, strict=True):
            if isinstance(answer, StorageError):
                yield message, _failed(message, answer)
            else:
                yield message, to_reply(answer, message)

    def _answers(self, asked: Sequence[Message]) -> list[bytes]:
        """Return the answers to messages; the server's thread may work on them with all cores."""
        channels = [self._channels[self._names[m.metadata.dst_node_id]] for m in asked]
        pairs = list(zip(channels, [body_of(message) for message in asked], strict=True))
        try:
            if self._together is not None:
                return self._together.answer(pairs)
            return [channel.handle(body) for channel, body in pairs]
        finally:
            give_threads_back()


def _failed(message: Message, error: Exception) -> Message:
    """Return Flower's error reply; only the type: an error's text may quote a record."""
    log.warning("node %d failed: %s", message.metadata.dst_node_id, type(error).__name__)
    return Message(Error(code=CLIENT_APP_FAILED, reason=type(error).__name__), reply_to=message)


def _identify() -> None:
    """Give this process the identity that Flower's ``Message`` asks for outside of a run."""
    try:
        _ = TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id
    except RuntimeError:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, _RUN
