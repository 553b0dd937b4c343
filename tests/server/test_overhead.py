"""What a round costs beside training does not grow with the sites, where it need not."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from fake_federation import BASE, FakeGrid, FakeSite, Federation, job_of
from flwr.app import Message
from sqlalchemy import Engine, event

import server.planning
import server.roster
from server.checkpoint import RunStore
from server.events import EventLog
from server.history import RunHistory
from server.rounds import RoundEngine
from shared.adapter import AdapterLayout, LayerShape, SharedAdapter
from shared.config import JobConfig
from shared.fixedpoint import encode as to_steps
from shared.messages import Description, Reply, TrainSummary, decode_request, encode
from shared.wire import body_of, to_reply

RULES = ("altfold", "fedavg")


def counted(calls, name, original):
    def call(*args, **kwargs):
        calls[name] += 1
        return original(*args, **kwargs)

    return call


def calls_of_a_run(folder, rule, sites):
    """How often a run does what it should do once a round, whatever the number of sites."""
    calls = Counter()
    run = Federation(
        folder / "run", job_of(rounds=2, aggregate={"rule": rule}), [f"s{n}" for n in range(sites)]
    )
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (server.planning, "part_digests"),
            (server.planning, "pack_parts"),
            (server.planning, "enclose"),
            (server.roster, "enclose"),
            (JobConfig, "model_dump_json"),
            (JobConfig, "digest"),
            (SharedAdapter, "sha256"),
            (EventLog, "_open"),
            (FakeGrid, "push_messages"),
        ):
            label = f"{owner.__name__}.{name}"
            patch.setattr(owner, name, counted(calls, label, getattr(owner, name)))

        def statement(*_):
            calls.update(["statement"])

        event.listen(Engine, "before_cursor_execute", statement)
        try:
            assert run.run().complete
        finally:
            event.remove(Engine, "before_cursor_execute", statement)
    return calls


@pytest.mark.parametrize("rule", RULES)
def test_job_adapter_and_history_are_handled_once_for_all_sites(tmp_path, rule):
    few = calls_of_a_run(tmp_path / "few", rule, 3)
    many = calls_of_a_run(tmp_path / "many", rule, 12)
    assert few == many
    # describe, two rounds, personalize, evaluate: adapters of four, one enclosure each.
    assert many["server.planning.part_digests"] == 4
    assert many["server.roster.enclose"] == 1
    assert many["FakeGrid.push_messages"] == 5
    assert many["EventLog._open"] == 1


class Watched(FakeGrid):
    """Remembers what was pushed together."""

    pushes: list[list[Message]]

    def push_messages(self, messages):
        batch = list(messages)
        self.pushes = [*getattr(self, "pushes", []), batch]
        return super().push_messages(batch)


def pushed(run, patch):
    """The sites of every push of a run, with the kind of request and the round."""
    grids = []
    patch.setattr(
        "fake_federation.FakeGrid", lambda *a, **k: grids.append(Watched(*a, **k)) or grids[-1]
    )
    return lambda: [
        (
            *{(r.kind, r.round) for r, _ in (decode_request(body_of(m)) for m in batch)},
            [m.metadata.dst_node_id for m in batch],
        )
        for batch in grids[-1].pushes
    ]


def test_the_requests_of_a_round_share_one_adapter_in_memory(tmp_path, monkeypatch):
    run = Federation(tmp_path / "run", job_of(rounds=1), [f"s{n}" for n in range(6)])
    grids = []
    monkeypatch.setattr(
        "fake_federation.FakeGrid", lambda *a, **k: grids.append(Watched(*a, **k)) or grids[-1]
    )
    outcome = run.run()
    for batch in grids[0].pushes:
        enclosures = {id(message.content["consilia"]["enclosure"]) for message in batch}
        assert len(enclosures) == 1
    train = next(b for b in grids[0].pushes if b[0].metadata.message_type == "train")
    sizes = [len(body_of(message)) for message in train]
    assert sum(sizes) == sum(c.bytes_down for c in run_record(run).contributions)
    assert outcome.complete


def run_record(run):
    with run.history() as history:
        return history.last_round("run")


def test_a_resumed_run_sends_to_the_same_sites_together(tmp_path, monkeypatch):
    """What the sites hold already differs after a resume; who is asked together must not."""
    job = job_of(rounds=4, aggregate={"rule": "ffa", "fold_every": 0})
    names = [f"s{n}" for n in range(5)]
    whole = Federation(tmp_path / "whole" / "run", job, names)
    with monkeypatch.context() as patch:
        groups = pushed(whole, patch)
        whole.run()
        undisturbed = groups()
    broken = Federation(tmp_path / "broken" / "run", job, names)

    def stop(site, request):
        if (request.kind, request.round, site.name) == ("train", 3, "s2"):
            raise KeyboardInterrupt

    broken.on_push = stop
    with monkeypatch.context() as patch:
        pushed(broken, patch)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever an interrupt becomes
            broken.run()
    broken.on_push = None
    with monkeypatch.context() as patch:
        groups = pushed(broken, patch)
        broken.run()
        resumed = groups()
    assert resumed[0] == undisturbed[0], "describe"
    assert resumed[1:] == undisturbed[3:]
    assert all(nodes == [1, 2, 3, 4, 5] for _, nodes in undisturbed)


def test_sites_that_lost_their_parts_are_asked_again_together(tmp_path, monkeypatch):
    run = Federation(
        tmp_path / "run",
        job_of(rounds=2, aggregate={"rule": "ffa", "fold_every": 0}),
        ("a", "b", "c", "d"),
    )

    def forget(site, request):
        if site.name in "bd" and (request.round, len(site.parts_seen)) == (2, 1):
            site.held.clear()

    run.on_push = forget
    with monkeypatch.context() as patch:
        groups = pushed(run, patch)
        assert run.run().complete
        sent = [nodes for kind, nodes in groups() if kind == ("train", 2)]
    assert sent == [[1, 2, 3, 4], [2, 4]]


LARGE = AdapterLayout((LayerShape("layer", "image", 512, 512),), rank=64, scaling=1.0)
LARGE_BYTES = 4 * 2 * 512 * 64


class LargeSite(FakeSite):
    """Sends a change as large as a real one, and computes nothing."""

    def handle(self, body):
        request, _ = decode_request(body)
        about = {k: getattr(request, k) for k in ("kind", "run", "round", "attempt")}
        reply = Reply(**about, site=self.name)
        if request.kind == "describe":
            told = Description(kind="image", examples={"image": 10})
            return encode(reply.model_copy(update={"description": told}))
        if request.kind != "train":
            return encode(reply.model_copy(update={"status": "refused", "reason": "data"}))
        names = LARGE.names(request.factors)
        change = {name: np.full(LARGE.shape_of(name), 1e-3, np.float32) for name in names}
        steps = to_steps(change, lambda _: request.weights["image"], request.scale)
        update = {
            "weights": dict(request.weights),
            "scale": request.scale,
            "summary": TrainSummary(loss=1.0),
        }
        return encode(reply.model_copy(update=update), steps)


class OneByOne(FakeGrid):
    """Sites answer when they are looked for, four at a time, as they train in cohorts."""

    def push_messages(self, messages):
        self.waiting = getattr(self, "waiting", {})
        ids = []
        for message in messages:
            self.pushed += 1
            ids.append(f"message-{self.pushed}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        replies = []
        for number in [i for i in message_ids if i in self.waiting][:4]:
            message = self.waiting.pop(number)
            site = self.sites[message.metadata.dst_node_id]
            replies.append(to_reply(site.handle(body_of(message)), message))
        return replies


def peak_of_a_round(folder, rule, sites):
    """Bytes at the worst moment of a round beyond those before it."""
    job = job_of(
        rounds=1, aggregate={"rule": rule, "deadline_seconds": 60.0}, personalize={"method": "none"}
    )
    seen = {}

    def watch(told):
        if told.kind == "round-started":
            tracemalloc.reset_peak()
        seen[told.kind] = tracemalloc.get_traced_memory()

    grid = OneByOne([LargeSite(f"s{n}") for n in range(sites)])
    tracemalloc.start()
    try:
        with (
            RunStore.create(folder / "run", job, base_sha256=BASE) as store,
            RunHistory.at(folder / "history.sqlite") as history,
        ):
            clock = grid.clock
            engine = RoundEngine(
                grid, job, store, history, LARGE, BASE,
                on_event=watch, clock=clock, sleep=clock.sleep,
            )  # fmt: skip
            outcome = engine.run()
    finally:
        tracemalloc.stop()
    assert [cost.contributors for cost in outcome.round_costs] == [sites]
    return seen["round-committed"][1] - seen["round-started"][0]


@pytest.mark.parametrize("rule", RULES)
def test_a_round_does_not_hold_an_adapter_for_every_site(tmp_path, rule):
    few, many = (peak_of_a_round(tmp_path / str(n), rule, n) for n in (40, 100))
    assert many - few < 6 * LARGE_BYTES, "60 sites more"
