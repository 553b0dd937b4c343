"""A grid of sites over a grid of workers: cohorts, order, faults, lost and unreadable answers."""

import threading
import time

import pytest
from flwr.serverapp import Grid

from server.app import WakingGrid
from shared.wire import body_of, sealed, to_message
from simulations.bundles import bundle, unbundle
from simulations.flower_grid import NODE_UNAVAILABLE, CohortGrid
from simulations.grid import CLIENT_APP_FAILED, LocalGrid, LostMessageError, Together
from simulations.placement import Crowd, Workers

NAMES = ["east", "north", "south", "west"]


class Worker:
    """Answers a bundle as a worker's process does; remembers the cohorts that it was given."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def handle(self, body):
        asked = unbundle(body)
        self.log.append((self.name, [number for number, _ in asked]))
        if any(request == b"break" for _, request in asked):
            raise RuntimeError("a report says pneumonia")
        if any(request == b"swap" for _, request in asked):
            asked = asked[::-1]
        return bundle([(n, NAMES[n].encode() + b":" + request) for n, request in asked])


@pytest.fixture
def log():
    return []


@pytest.fixture
def grid_of(log):
    grids = []

    def make(samples=2, workers=2, fail=None, names=NAMES):
        inner = LocalGrid({f"w{n}": Worker(f"w{n}", log) for n in range(workers)}, fail=fail)
        grids.append(inner)
        crowd = Crowd(names, dict.fromkeys(names, 1), samples)
        return CohortGrid(inner, crowd, threading.Event())

    yield make
    for inner in grids:
        inner.close()


def ask(grid, bodies, seconds=5.0, kind="train"):
    """Ask nodes, as (node, body); return the replies by node."""
    messages = [to_message(body, node, kind) for node, body in bodies]
    replies = grid.send_and_receive(messages, timeout=seconds)
    nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    return {nodes[reply.metadata.reply_to_message_id]: reply for reply in replies}


def test_the_round_loop_sees_the_sites_and_not_the_workers(grid_of):
    grid = grid_of()
    assert isinstance(grid, Grid)
    assert isinstance(grid, WakingGrid)
    assert grid.get_node_ids() == [1, 2, 3, 4]
    assert [node.name for node in grid.get_nodes()] == NAMES


@pytest.mark.parametrize("samples", [1, 2, 3, 100])
def test_every_site_gets_its_own_answer_whatever_the_cohorts(grid_of, log, samples):
    replies = ask(grid_of(samples), [(n, b"q%d" % n) for n in (1, 2, 3, 4)])
    assert {n: body_of(reply) for n, reply in replies.items()} == {
        n: b"%s:q%d" % (NAMES[n - 1].encode(), n) for n in (1, 2, 3, 4)
    }
    assert max(len(sites) for _, sites in log) == min(samples, 4)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_cohorts_depend_on_who_is_asked_and_not_on_the_workers(grid_of, log, workers):
    ask(grid_of(2, workers), [(n, b"q") for n in (1, 3, 4)])
    assert sorted(sites for _, sites in log) == [[0, 2], [3]]


def test_cohorts_are_those_of_the_local_grid(grid_of, log):
    together, load = [], {"east": 3, "north": 1, "south": 2, "west": 2}

    class Asked:
        def __init__(self, name):
            self.name = name

    def answer(asked):
        together.append([NAMES.index(channel.name) for channel, _ in asked])
        return [b"a"] * len(asked)

    questions = [(n, b"q") for n in (1, 2, 3, 4)]
    with LocalGrid({n: Asked(n) for n in NAMES}, Together(answer, load, 4)) as local:
        local.send_and_receive([to_message(body, n, "train") for n, body in questions], timeout=5)
    grid = grid_of()
    grid._crowd = Crowd(NAMES, load, 4)
    ask(grid, questions)
    assert sorted(sites for _, sites in log) == together == [[0, 1], [2, 3]]


def test_cohorts_are_spread_and_a_site_stays_with_its_worker(grid_of, log):
    grid = grid_of(1)
    ask(grid, [(n, b"q") for n in (1, 2, 3, 4)])
    first = {sites[0]: worker for worker, sites in log}
    assert sorted(first.values()) == ["w0", "w0", "w1", "w1"]
    for cohort in ((1, 2, 3, 4), (2, 3), (1, 2)):
        log.clear()
        ask(grid, [(n, b"q") for n in cohort])
        assert {sites[0]: worker for worker, sites in log} == {n - 1: first[n - 1] for n in cohort}


def test_a_worker_that_has_its_share_leaves_the_rest_to_others():
    workers = Workers([10, 20])
    assert workers.share([[0], [1], [2], [3]]) == [10, 20, 10, 20]
    assert workers.share([[0], [2]]) == [10, 20]
    assert workers.share([[0, 1], [2, 3]]) == [10, 20]


def test_what_all_requests_share_travels_once(grid_of):
    sizes, tail = [], sealed(b"adapter" * 1000)

    def weigh(message):
        sizes.append(len(body_of(message)))

    grid = grid_of(4, fail=weigh)
    messages = [to_message(b"head%d" % n, n, "train", enclosure=tail) for n in (1, 2, 3, 4)]
    replies = grid.send_and_receive(messages, timeout=5)
    assert [body_of(reply)[-10:] for reply in replies] == [b"teradapter"] * 4
    assert sizes[0] < 7_200


@pytest.mark.parametrize("ends", [(b"full", None), (b"full", b"held"), (b"held", b"full")])
def test_requests_that_end_differently_come_whole(grid_of, log, ends):
    enclosures = [sealed(end) if end else None for end in (*ends, ends[0])]
    messages = [to_message(b"h", n, "train", enclosure=e) for n, e in enumerate(enclosures, 1)]
    replies = grid_of(4).send_and_receive(messages, timeout=5)
    expected = [b"h" + (end or b"") for end in (*ends, ends[0])]
    assert [body_of(reply).split(b":")[1] for reply in replies] == expected
    assert log == [("w0", [0, 1, 2])]


def test_a_failing_worker_is_an_error_of_each_of_its_sites_and_of_no_other(grid_of, caplog):
    replies = ask(grid_of(2), [(1, b"fine"), (2, b"break"), (3, b"fine"), (4, b"fine")])
    assert [replies[n].has_error() for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert {replies[n].error.code for n in (1, 2)} == {CLIENT_APP_FAILED}
    assert "pneumonia" not in caplog.text + replies[2].error.reason


def test_answers_for_other_sites_are_not_taken(grid_of):
    replies = ask(grid_of(2), [(1, b"swap"), (2, b"q"), (3, b"q"), (4, b"q")])
    assert [replies[n].has_error() for n in (1, 2, 3, 4)] == [True, True, False, False]


def test_a_lost_answer_leaves_its_sites_without_reply(grid_of):
    lost = []

    def fail(message):
        if not lost:
            lost.append(message)
            raise LostMessageError

    start = time.monotonic()
    replies = ask(grid_of(2, fail=fail), [(n, b"q") for n in (1, 2, 3, 4)], seconds=0.5)
    assert set(replies) == {3, 4}
    assert time.monotonic() - start >= 0.5


def test_what_cannot_be_sent_is_an_error_at_once(grid_of):
    grid = grid_of(2)
    grid._grid.push_messages = lambda _: []
    replies = ask(grid, [(1, b"q"), (2, b"q")])
    assert {reply.error.code for reply in replies.values()} == {NODE_UNAVAILABLE}


def test_an_unknown_node_is_an_error_and_the_others_are_asked(grid_of):
    replies = ask(grid_of(4), [(1, b"q"), (9, b"q")])
    assert body_of(replies[1]) == b"east:q"
    assert replies[9].error.code == NODE_UNAVAILABLE


def test_two_pushes_are_pulled_apart(grid_of):
    grid = grid_of(4)
    first = grid.push_messages([to_message(b"a", n, "train") for n in (1, 2)])
    second = grid.push_messages([to_message(b"b", n, "evaluate") for n in (2, 3)])
    assert not set(first) & set(second)
    replies = {}
    while len(replies) < 4:
        grid.wait(1.0)
        for ids in (second, first):
            for reply in grid.pull_messages(ids):
                assert reply.metadata.reply_to_message_id in ids
                replies[reply.metadata.reply_to_message_id] = body_of(reply)
    assert [replies[i] for i in first] == [b"east:a", b"north:a"]
    assert [replies[i] for i in second] == [b"north:b", b"south:b"]
    assert grid.pull_messages([*first, *second]) == []


def test_a_site_that_is_asked_twice_is_asked_one_after_the_other(grid_of, log):
    grid = grid_of(4)
    replies = grid.send_and_receive([to_message(b"%d" % n, 1, "train") for n in (1, 2)], timeout=5)
    assert sorted(body_of(reply) for reply in replies) == [b"east:1", b"east:2"]
    assert [sites for _, sites in log] == [[0], [0]]


def test_waiting_ends_with_the_first_reply(grid_of):
    grid = grid_of(4)
    ids = grid.push_messages([to_message(b"q", 1, "train")])
    start = time.monotonic()
    grid.wait(5.0)
    assert time.monotonic() - start < 2
    assert len(grid.pull_messages(ids)) == 1
    start = time.monotonic()
    grid.wait(0.1)
    assert 0.1 <= time.monotonic() - start < 1


def test_an_interrupted_run_ends_the_round_loop(grid_of):
    grid = grid_of()
    ids = grid.push_messages([to_message(b"q", 1, "train")])
    grid._interrupted.set()
    for call in (lambda: grid.push_messages([]), lambda: grid.pull_messages(ids)):
        with pytest.raises(KeyboardInterrupt):
            call()
    with pytest.raises(KeyboardInterrupt):
        grid.wait(1.0)
