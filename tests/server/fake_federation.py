"""A federation without images: sites fit matrices, over a grid that obeys the test."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.checkpoint import RunStore
from server.events import Event
from server.history import RunHistory
from server.rounds import RoundEngine, RunOutcome
from shared.adapter import (
    AdapterLayout,
    LayerShape,
    SharedAdapter,
    adapter_sha256,
    factor_name,
)
from shared.config import JobConfig, parse_job
from shared.fixedpoint import encode as to_steps
from shared.messages import Description, Reply, Request, TrainSummary, decode_request, encode
from shared.parts import join_parts, unpack_parts
from shared.privacy.clipping import clip
from shared.results import SiteEvaluation
from shared.security.claims import split_signed
from shared.wire import body_of, to_reply

LAYOUT = AdapterLayout(
    layers=(
        LayerShape("vision.q", "image", 6, 9),
        LayerShape("vision.fc", "image", 10, 4),
        LayerShape("text.q", "text", 7, 7),
    ),
    rank=2,
    scaling=2.0,
)
BASE = "b" * 64
EMPTY = adapter_sha256({})


def job_of(**tables: Any) -> JobConfig:
    """A job of five rounds that four sites can answer at once."""
    aggregate = {"deadline_seconds": 2.0, "fold_every": 2} | tables.pop("aggregate", {})
    if aggregate.get("rule") == "fedavg":
        aggregate.pop("fold_every")
    return parse_job({"name": "toy", "rounds": 5, "aggregate": aggregate} | tables)


@dataclass
class FakeSite:
    """Fits a target matrix per layer by gradient steps; remembers parts as a real site does."""

    name: str
    examples: dict[str, int] = field(default_factory=lambda: {"image": 100, "text": 100})
    kind: str = "paired"
    held: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    parts_seen: list[set[str]] = field(default_factory=list)
    refuses: Callable[[Request], str | None] = lambda _: None
    change_reply: Callable[[Reply, dict], tuple[Reply, dict]] = lambda reply, t: (reply, t)

    def target(self, layer: LayerShape) -> np.ndarray:
        seed = sum(self.name.encode()) + layer.outputs
        return np.random.default_rng(seed).standard_normal((layer.outputs, layer.inputs)) / 4

    def handle(self, body: bytes) -> bytes:
        request, tensors = decode_request(body)
        self.seen.append(request)
        reply = Reply(
            kind=request.kind,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            site=self.name,
            seconds=0.001,
            peak_memory_bytes=1000,
        )
        reason = self.refuses(request)
        if reason:
            return encode(reply.model_copy(update={"status": "refused", "reason": reason}))
        if request.kind == "describe":
            about = Description(kind=self.kind, examples=self.examples)
            return encode(reply.model_copy(update={"description": about}))
        came = unpack_parts(tensors)
        self.parts_seen.append(set(came))
        self.held |= came
        held = {part: adapter_sha256(self.held.get(part, {})) for part in ("A", "B", "residual")}
        if any(held[part] != sha for part, sha in request.parts.items() if sha != EMPTY):
            return encode(reply.model_copy(update={"status": "needs"}))
        parts = {p: self.held.get(p, {}) if request.parts[p] != EMPTY else {} for p in held}
        reply = reply.model_copy(update={"holds": held})
        shared = join_parts(parts, request.folds)
        answer = getattr(self, request.kind)(request, shared, reply)
        return encode(*self.change_reply(*answer))

    def train(self, request: Request, shared: SharedAdapter, reply: Reply):
        change = self.local_change(shared, request)
        change, clipped = clip(change, request.job.aggregate.clip_norm)
        weights = request.weights
        delta = to_steps(change, lambda name: weights[LAYOUT.tower_of(name)], request.scale)
        summary = TrainSummary(
            loss=1.0,
            validation_loss=2.0 + request.round,
            gradient_norms=dict.fromkeys(weights, 0.5),
            discrepancy={"image": 2.0, "text": 0.5} if len(weights) == 2 else {},
            clipped=clipped,
            steps=3,
        )
        update = {"weights": dict(weights), "scale": request.scale, "summary": summary}
        return reply.model_copy(update=update), delta

    def local_change(self, shared: SharedAdapter, request: Request) -> dict[str, np.ndarray]:
        change = {}
        for layer in LAYOUT.layers:
            if layer.tower not in request.weights:
                continue
            names = {f: factor_name(layer.module, f) for f in ("A", "B")}
            start = {f: shared.factors[names[f]] for f in ("A", "B")}
            now = {f: start[f].astype(np.float64) for f in ("A", "B")}
            base = 0.0
            if names["A"] in shared.residual:
                base = shared.residual[names["B"]] @ shared.residual[names["A"]]
            noise = np.random.default_rng(request.seed).standard_normal() / 100
            for _ in range(3):
                error = base + now["B"] @ now["A"] - self.target(layer) + noise
                step = {"A": now["B"].T @ error, "B": error @ now["A"].T}
                for factor in request.factors:
                    now[factor] = now[factor] - 0.3 * step[factor]
            for factor in request.factors:
                end = now[factor].astype(np.float32)
                change[names[factor]] = end - start[factor]
        return change

    def personalize(self, request: Request, shared: SharedAdapter, reply: Reply):
        return reply, {}

    def evaluate(self, request: Request, shared: SharedAdapter, reply: Reply):
        evaluation = SiteEvaluation(
            metrics={"shared": {"auroc": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 9}}},
            differences={},
            in_use={"image": "shared"},
        )
        summary = TrainSummary(loss=1.5, validation_loss=1.5)
        return reply.model_copy(update={"evaluation": evaluation, "summary": summary}), {}


@dataclass
class Clock:
    """Time that passes only by sleeping."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-4)


class FakeGrid(Grid):
    """Carries messages at once, unless ``on_push`` says otherwise.

    ``on_push(site, request) -> None`` is an ordinary answer; ``"lost"`` no reply ever;
    ``"error"`` an error of Flower's from the SuperLink; ``"twice"`` the same reply twice;
    ``"differs"`` a second reply that says something else; a number answers only after so many
    seconds.
    """

    def __init__(
        self, sites: Iterable[FakeSite], clock: Clock | None = None, order: int = 1
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.sites = dict(enumerate(sites, start=1))
        self.clock = clock or Clock()
        self.order = order
        self.on_push: Callable[[FakeSite, Request], Any] = lambda site, request: None
        self.connected = set(self.sites)
        self.ready: dict[str, tuple[float, list[Message]]] = {}
        self.pushed = 0

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("the round loop has no use for this method of the grid")

    def get_node_ids(self) -> list[int]:
        return sorted(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in list(messages)[:: self.order]:
            self.pushed += 1
            message_id = f"message-{self.pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
            site = self.sites[message.metadata.dst_node_id]
            request, _ = decode_request(split_signed(body_of(message))[1])
            wish = self.on_push(site, request)
            if wish == "lost":
                continue
            if wish == "error":
                replies = [Message(Error(code=5, reason="gone"), reply_to=message)]
                replies[0].metadata.__dict__["_src_node_id"] = 1
            else:
                replies = [to_reply(site.handle(body_of(message)), message)]
            if wish == "twice":
                replies *= 2
            if wish == "differs":
                replies.append(to_reply(altered(site, body_of(message)), message))
            delay = wish if isinstance(wish, int | float) else 0.0
            self.ready[message_id] = (self.clock.now + delay, replies)
        return ids[:: self.order]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        due = [i for i in message_ids if i in self.ready and self.ready[i][0] <= self.clock.now]
        return [reply for i in due[:: self.order] for reply in self.ready.pop(i)[1]]

    def send_and_receive(self, *args: Any, **kwargs: Any) -> list[Message]:
        raise AssertionError("the round loop has no use for this method of the grid")


def altered(site: FakeSite, body: bytes) -> bytes:
    """Another answer of a site to the same request."""
    before = site.change_reply
    site.change_reply = lambda reply, tensors: (with_summary(reply, loss=9.0), tensors)
    answer = site.handle(body)
    site.change_reply = before
    return answer


@dataclass
class Federation:
    """A run of the toy federation that can be broken off and taken up again."""

    path: Path
    job: JobConfig = field(default_factory=job_of)
    names: tuple[str, ...] = ("north", "east", "south", "west")
    sites: list[FakeSite] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    order: int = 1
    on_push: Callable[[FakeSite, Request], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = self.sites or [FakeSite(name) for name in self.names]

    def history(self) -> RunHistory:
        return RunHistory.at(self.path.parent / "history.sqlite")

    def run(self) -> RunOutcome:
        """Start the run, or go on with it; as if in a new process."""
        known = (self.path / "manifest.json").exists()
        with (
            RunStore.open(self.path, self.job)
            if known
            else RunStore.create(self.path, self.job, base_sha256=BASE) as store,
            self.history() as history,
        ):
            self.grid = FakeGrid(self.sites, order=self.order)
            if self.on_push:
                self.grid.on_push = self.on_push
            engine = RoundEngine(
                self.grid,
                self.job,
                store,
                history,
                LAYOUT,
                BASE,
                on_event=self.events.append,
                clock=self.grid.clock,
                sleep=self.grid.clock.sleep,
                **self.options,
            )
            return engine.run()

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def with_summary(reply: Reply, **changes: Any) -> Reply:
    """A reply whose released numbers were tampered with."""
    return reply.model_copy(update={"summary": reply.summary.model_copy(update=changes)})


__all__ = ["LAYOUT", "FakeGrid", "FakeSite", "Federation", "job_of", "replace", "with_summary"]
