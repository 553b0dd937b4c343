"""Flower's Grid in one process: order, faults, lost messages, deadlines and stopping."""

import threading
import time
from pathlib import Path

import pytest
import torch
from flwr.serverapp import Grid

from client.together import NotReleasedError
from shared.errors import StorageError
from shared.wire import body_of, to_message
from simulations.grid import CLIENT_APP_FAILED, LocalGrid, LostMessageError, Together


class Site:
    """Answers with its name; remembers what it was asked."""

    def __init__(self, name, log, hold=0.0):
        self.name, self.log, self.hold = name, log, hold

    def handle(self, body):
        time.sleep(self.hold)
        self.log.append((self.name, body))
        if body == b"break":
            raise RuntimeError("a report says pneumonia")
        return self.name.encode() + b":" + body


@pytest.fixture
def log():
    return []


@pytest.fixture
def sites(log):
    return {name: Site(name, log) for name in ("west", "east", "north")}


def test_nodes_are_the_sites_by_sorted_name(sites):
    with LocalGrid(sites) as grid:
        assert isinstance(grid, Grid)
        assert list(grid.get_node_ids()) == [1, 2, 3]
        assert [(n.node_id, n.name, n.status) for n in grid.get_nodes()] == [
            (1, "east", "online"),
            (2, "north", "online"),
            (3, "west", "online"),
        ]


def test_messages_are_carried_out_in_the_order_they_were_pushed(sites, log):
    order = [3, 1, 2, 1, 3]
    with LocalGrid(sites) as grid:
        messages = [to_message(b"%d" % i, node, "train") for i, node in enumerate(order)]
        replies = grid.send_and_receive(messages, timeout=10)
    assert [body for _, body in log] == [b"0", b"1", b"2", b"3", b"4"]
    assert [body_of(reply) for reply in replies] == [
        b"west:0", b"east:1", b"north:2", b"east:3", b"west:4",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["describe", "train", "personalize", "evaluate"])
def test_every_kind_of_request_reaches_the_agent(sites, kind):
    with LocalGrid(sites) as grid:
        (reply,) = grid.send_and_receive([to_message(b"q", 1, kind)], timeout=10)
    assert body_of(reply) == b"east:q"


def test_replies_can_be_pulled_one_by_one_while_others_work(log):
    gate = threading.Event()

    class Slow(Site):
        def handle(self, body):
            gate.wait(10)
            return super().handle(body)

    with LocalGrid({"a": Site("a", log), "b": Slow("b", log)}) as grid:
        ids = grid.push_messages([to_message(b"x", node, "train") for node in (1, 2)])
        grid.wait(10)
        first = grid.pull_messages(ids)
        assert [body_of(reply) for reply in first] == [b"a:x"]
        assert first[0].metadata.reply_to_message_id == ids[0]
        assert grid.pull_messages(ids) == []
        gate.set()
        grid.wait(10)
        assert [body_of(reply) for reply in grid.pull_messages(ids)] == [b"b:x"]


def test_a_failing_site_becomes_flowers_error_reply_without_its_text(sites, caplog):
    with LocalGrid(sites) as grid:
        replies = grid.send_and_receive(
            [to_message(b"break", 1, "train"), to_message(b"fine", 2, "train")], timeout=10
        )
    assert replies[0].has_error()
    assert replies[0].error.code == CLIENT_APP_FAILED
    assert replies[0].error.reason == "RuntimeError"
    assert body_of(replies[1]) == b"north:fine"
    assert "pneumonia" not in caplog.text


def test_faults_can_be_injected_by_message(sites, log):
    def fail(message):
        if message.metadata.dst_node_id == 2:
            raise ConnectionError
        if message.metadata.dst_node_id == 3:
            raise LostMessageError

    with LocalGrid(sites, fail=fail) as grid:
        messages = [to_message(b"x", node, "train") for node in (1, 2, 3)]
        start = time.monotonic()
        replies = grid.send_and_receive(messages, timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 3
    assert [reply.has_error() for reply in replies] == [False, True]
    assert log == [("east", b"x")]


def test_a_message_to_an_unknown_node_gets_an_error(sites):
    with LocalGrid(sites) as grid:
        (reply,) = grid.send_and_receive([to_message(b"x", 9, "train")], timeout=10)
    assert reply.has_error()


class Cohorts:
    """Answers all at once, and remembers who was asked together."""

    def __init__(self):
        self.seen = []

    def __call__(self, asked):
        self.seen.append([site.name for site, _ in asked])
        return [site.handle(body) for site, body in asked]


LOAD = {"east": 8, "north": 8, "west": 20}


def ask(grid, bodies, nodes=(1, 2, 3)):
    messages = [to_message(body, node, "train") for body, node in zip(bodies, nodes, strict=True)]
    return grid.send_and_receive(messages, timeout=10)


def test_messages_of_one_push_are_answered_in_cohorts(sites):
    answer = Cohorts()
    with LocalGrid(sites, Together(answer, LOAD, samples=16)) as grid:
        replies = ask(grid, [b"0", b"1", b"2"])
        assert [body_of(reply) for reply in replies] == [b"east:0", b"north:1", b"west:2"]
        ask(grid, [b"3", b"4"], (1, 3))
    assert answer.seen == [["east", "north"], ["west"], ["east"], ["west"]]


def test_two_questions_to_one_site_are_asked_one_after_the_other(sites, log):
    answer = Cohorts()
    with LocalGrid(sites, Together(answer, LOAD, samples=99)) as grid:
        replies = ask(grid, [b"0", b"1", b"2"], (1, 1, 2))
    assert answer.seen == [["east"], ["east"], ["north"]]
    assert len(replies) == len(log) == 3


def test_a_fault_takes_its_own_site_out_of_the_cohort(sites):
    answer = Cohorts()

    def fail(message):
        if message.metadata.dst_node_id == 1:
            raise ConnectionError

    with LocalGrid(sites, Together(answer, LOAD, samples=99), fail) as grid:
        replies = ask(grid, [b"0", b"1", b"2"])
    assert [reply.has_error() for reply in replies] == [True, False, False]
    assert answer.seen == [["north", "west"]]


def test_a_message_to_an_unknown_node_does_not_disturb_a_cohort(sites):
    answer = Cohorts()
    with LocalGrid(sites, Together(answer, LOAD, samples=99)) as grid:
        replies = ask(grid, [b"0", b"1", b"2"], (1, 9, 3))
    assert [reply.has_error() for reply in replies] == [False, True, False]


def test_closing_drops_what_waits_and_does_not_wait_for_the_work(log):
    grid = LocalGrid({"a": Site("a", log, hold=0.5)})
    grid.push_messages([to_message(b"%d" % i, 1, "train") for i in range(100)])
    start = time.monotonic()
    grid.close(timeout=0.1)
    assert time.monotonic() - start < 0.4
    time.sleep(1.2)
    assert len(log) <= 1


def test_a_site_that_releases_nothing_takes_only_its_own_message_with_it(sites):
    def answer(asked):
        raise NotReleasedError(
            [StorageError("disk full") if s.name == "north" else s.handle(b) for s, b in asked]
        )

    with LocalGrid(sites, Together(answer, LOAD, samples=99)) as grid:
        replies = ask(grid, [b"0", b"1", b"2"])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert [body_of(replies[n]) for n in (0, 2)] == [b"east:0", b"west:2"]
    assert (replies[1].error.code, replies[1].error.reason) == (CLIENT_APP_FAILED, "StorageError")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_only_one_thread_of_the_process_keeps_others_for_its_work():
    # With more threads than cores GNU's OpenMP lets all of them sleep between pieces of work.
    def running():
        return len(list(Path("/proc/self/task").iterdir()))

    def work():
        torch.set_num_threads(2)
        (torch.arange(1_000_000, dtype=torch.float32) / 3).sin().sum()

    class Working:
        def handle(self, body):
            at_first = running()
            work()
            return b"%d %d" % (at_first, running())

    before = torch.get_num_threads()
    try:
        with LocalGrid({"a": Working()}) as grid:
            grid.send_and_receive([to_message(b"", 1, "train")], timeout=10)
            idle = running()
            work()
            (reply,) = grid.send_and_receive([to_message(b"", 1, "train")], timeout=10)
            assert [int(n) for n in body_of(reply).split()] == [idle, idle + 1]
            assert running() == idle
    finally:
        torch.set_num_threads(before)
