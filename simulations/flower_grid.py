"""A run over Flower's own simulation engine: its nodes are workers, and each plays many sites.

The round loop sees a grid of sites, as everywhere. What it pushes at once is split into
cohorts, exactly as ``LocalGrid`` does it; each travels as one Flower message to a worker, whose
process answers for all sites of the cohort at once. Which worker that is changes no number.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Array, Context, Error, Message
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from client.app import client_app
from client.settings import SiteSettings
from shared.config import JobConfig
from shared.errors import ConsiliaError, WireError
from shared.messages import RequestKind
from shared.wire import MESSAGE_TYPES, body_of, to_message, to_reply
from simulations.bundles import bundle, unbundle
from simulations.flower_engine import (
    ActorSites,
    backend_config,
    by_name,
    check_ray,
    gpus_here,
    quiet_environment,
)
from simulations.grid import CLIENT_APP_FAILED, SiteGrid
from simulations.placement import Crowd, Workers

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")

NODE_UNAVAILABLE = 5
"""Flower's error code for a worker that could not be reached."""

_REGISTRATION_SECONDS = 120.0
_ENDING_SECONDS = 60.0
_LOOK_SECONDS = 0.01
_KINDS: dict[str, RequestKind] = {kind: name for name, kind in MESSAGE_TYPES.items()}


class CohortGrid(SiteGrid):
    """A grid of sites over a grid of workers.

    Used by the thread of the round loop only.

    Args:
        grid: Flower's own; its nodes are the workers.
        crowd: The sites.
        interrupted: Once it is set, the round loop ends as after Ctrl-C.
    """

    def __init__(self, grid: Grid, crowd: Crowd, interrupted: threading.Event) -> None:
        super().__init__(crowd.names)
        self._grid = grid
        self._crowd = crowd
        self._interrupted = interrupted
        self._workers = Workers(sorted(grid.get_node_ids()))
        self._open: dict[str, dict[int, Message]] = {}
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run, as the interface wants it."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, one bundle to a cohort, and return their ids."""
        self._check()
        pushed = self._numbered(messages)
        strangers = [m for m in pushed if m.metadata.dst_node_id not in self._names]
        self._fail(strangers, NODE_UNAVAILABLE)
        known = [m for m in pushed if m.metadata.dst_node_id in self._names]
        groups = self._crowd.cohorts([message.metadata.dst_node_id - 1 for message in known])
        asked = [
            {known[place].metadata.dst_node_id - 1: known[place] for place in group}
            for group in groups
        ]
        for cohort, node in zip(asked, self._workers.share(asked), strict=True):
            self._send(cohort, node)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, oldest first, and forget them."""
        self._check()
        self._look()
        wanted = set(message_ids)
        return [self._replies.pop(i) for i in list(self._replies) if i in wanted]

    def wait(self, timeout: float) -> None:
        """Wait until another reply has come, or so many seconds have passed."""
        deadline = time.monotonic() + timeout
        seen = len(self._replies)
        while len(self._replies) == seen and (left := deadline - time.monotonic()) > 0:
            self._check()
            time.sleep(min(_LOOK_SECONDS, left))
            self._look()

    def _send(self, asked: dict[int, Message], node: int) -> None:
        """Send a cohort's requests, by number of the site, to a worker."""
        first = next(iter(asked.values())).metadata
        heads, tail = _sheets(list(asked.values()))
        body = bundle(list(zip(asked, heads, strict=True)), len(tail.data) if tail else 0)
        message = to_message(body, node, _KINDS[first.message_type], first.ttl, tail)
        sent = list(self._grid.push_messages([message]))
        if sent:
            self._open[sent[0]] = asked
        else:
            self._fail(asked.values(), NODE_UNAVAILABLE)

    def _look(self) -> None:
        """Take what the workers have answered since the last look."""
        if not self._open:
            return
        for reply in self._grid.pull_messages(list(self._open)):
            asked = self._open.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                self._fail(asked.values(), reply.error.code)
                continue
            try:
                answers = _answers(reply, list(asked))
            except WireError as error:
                log.warning("a worker's answer cannot be read: %s", error)
                self._fail(asked.values(), CLIENT_APP_FAILED)
                continue
            for number, answer in answers:
                message = asked[number]
                self._replies[message.metadata.message_id] = to_reply(answer, message)

    def _fail(self, messages: Iterable[Message], code: int) -> None:
        """Let Flower's error be every site's reply, without a text: it may quote a record."""
        for message in messages:
            log.warning("node %d failed: error %d", message.metadata.dst_node_id, code)
            error = Error(code=code, reason="the site's worker failed")
            self._replies[message.metadata.message_id] = Message(error, reply_to=message)

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt  # where the round loop would have met it in this process


def _answers(reply: Message, numbers: list[int]) -> list[tuple[int, bytes]]:
    """Return the answers that a worker sent, which must be those of the sites in question."""
    answers = unbundle(body_of(reply))
    if [number for number, _ in answers] != numbers:
        raise WireError("bundle: answers for other sites than were asked")
    return answers


def _sheets(messages: Sequence[Message]) -> tuple[list[bytes], Array | None]:
    """Return what of every request is its own, and the end that all share, if it is one object."""
    arrays = [_arrays_of(message) for message in messages]
    tail = arrays[0][1] if len(arrays[0]) == 2 else None
    if tail is not None and all(len(pair) == 2 and pair[1] is tail for pair in arrays):
        return [pair[0].data for pair in arrays], tail
    return [body_of(message) for message in messages], None


def _arrays_of(message: Message) -> list[Array]:
    """Return the arrays of a request as ``shared.wire`` put them in: body, then enclosure."""
    return [array for record in message.content.array_records.values() for array in record.values()]


@dataclass
class _Coordinator(Generic[Outcome]):
    """The ServerApp's side of a run, and what becomes of it.

    Attributes:
        coordinate: The work.
        crowd: The sites.
        workers: So many nodes are waited for; Flower may start the ServerApp before it has
            registered them.
        interrupted: Set to end the work as after Ctrl-C.
        ended: Set once the work has ended.
        results: What it returned.
        failures: What it raised.
    """

    coordinate: Callable[[Grid], Outcome]
    crowd: Crowd
    workers: int
    interrupted: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    results: list[Outcome] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def app(self) -> ServerApp:
        """Return the ServerApp that does the work."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, _context: Context) -> None:
            try:
                _await_nodes(grid, self.workers)
                sites = CohortGrid(grid, self.crowd, self.interrupted)
                self.results.append(self.coordinate(sites))
            except BaseException as error:
                self.failures.append(error)
                raise
            finally:
                self.ended.set()

        return app


def run_flower(
    settings: Sequence[SiteSettings],
    job: JobConfig,
    coordinate: Callable[[Grid], Outcome],
    load: Mapping[str, int],
    samples: int,
) -> Outcome:
    """Coordinate a run over Flower's simulation engine; the sites live in Ray's actors.

    Args:
        settings: All sites.
        job: The job.
        coordinate: The ServerApp's work, such as ``run_job`` with everything but the grid
            filled in; called on a thread of its own.
        load: Samples that every site trains on in one step.
        samples: Sites whose samples together are no more than this work at once.

    Returns:
        What ``coordinate`` returned.

    Raises:
        ConfigError: If Ray is not installed, or the cluster of ``RAY_ADDRESS`` is of no use.
        ConsiliaError: If Flower's engine ends before the run does; and whatever
            ``coordinate`` raises.
    """
    check_ray()
    os.environ.update(quiet_environment(job.simulation.threads))
    # Flower's engine and Ray are loaded only here, and only once the environment is set.
    from flwr.simulation import run_simulation  # noqa: PLC0415
    from flwr.supercore import telemetry  # noqa: PLC0415

    from simulations.flower_actors import count_actors, steady_actors  # noqa: PLC0415

    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # Flower has read its variable already
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    sites = ActorSites(by_name(settings), job)
    crowd = Crowd([site.name for site in sites.settings], load, samples)
    config = backend_config(job, gpus_here(job), len(crowd.names))
    workers = count_actors(config)
    server = _Coordinator(coordinate, crowd, workers)
    courier = client_app(lambda _context: sites)
    try:
        with steady_actors():
            run_simulation(server.app(), courier, workers, backend_config=config)
    except BaseException:
        server.interrupted.set()
        server.ended.wait(_ENDING_SECONDS)
        if server.failures:
            raise server.failures[0] from None
        raise
    if server.failures:
        raise server.failures[0]
    if not server.results:
        raise ConsiliaError("Flower's simulation engine ended before the run did")
    return server.results[0]


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
