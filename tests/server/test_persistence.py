"""Over a network messages get lost: a site is asked again, and still counts once."""

import random
from dataclasses import dataclass, field

import pytest
from fake_federation import FakeGrid, FakeSite, Federation, job_of

from server.questions import Persistence
from shared.messages import Reply, decode_request, encode

PERSISTENCE = Persistence(after_failure=0.1, after_silence=0.5)
NAMES = ("north", "east", "south", "west")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("plain") / "run").run().shared.sha256()


def federation(path, **changes):
    return Federation(path / "run", options={"persistence": PERSISTENCE}, **changes)


class Trouble:
    """Something goes wrong with the first messages of a site's question in round 2."""

    def __init__(self, wish, times=1):
        self.wish, self.left = wish, times

    def __call__(self, site, request):
        if (site.name, request.kind, request.round) != ("east", "train", 2) or not self.left:
            return None
        self.left -= 1
        return self.wish


@pytest.mark.parametrize(
    "trouble", [("error", 1), ("error", 3), ("lost", 1), ("lost", 2), (0.7, 1), ("twice", 1)]
)
def test_what_goes_wrong_with_messages_costs_neither_site_nor_bit(tmp_path, undisturbed, trouble):
    """Errors, silence, an answer that is slower than the patience, and one that comes twice."""
    run = federation(tmp_path, on_push=Trouble(*trouble))
    outcome = run.run()
    assert outcome.complete
    assert outcome.shared.sha256() == undisturbed
    assert [cost.contributors for cost in outcome.round_costs] == [4] * 5


class OverloadedError(Exception):
    """What Flower raises when the SuperLink could not keep what it was given."""


@pytest.fixture
def overloaded(monkeypatch):
    """A third of all calls of Flower's grid fail, some after they were carried out; which ones."""
    failed, chance = [], random.Random(3)

    def failing(name):
        real = getattr(FakeGrid, name)

        def call(self, *arguments):
            if chance.random() > 1 / 3:
                return real(self, *arguments)
            failed.append(name)
            if name == "push_messages":
                real(self, *arguments)
            raise OverloadedError

        monkeypatch.setattr(FakeGrid, name, call)

    for name in ("push_messages", "pull_messages", "get_node_ids"):
        failing(name)
    return failed


def test_a_superlink_that_is_overloaded_costs_neither_site_nor_bit(
    tmp_path, undisturbed, overloaded, capsys
):
    outcome = federation(tmp_path).run()
    assert outcome.complete
    assert outcome.shared.sha256() == undisturbed
    assert [cost.contributors for cost in outcome.round_costs] == [4] * 5
    assert set(overloaded) == {"push_messages", "pull_messages", "get_node_ids"}
    assert "Flower could not do it now: OverloadedError; tried again" in capsys.readouterr().err


def test_without_persistence_errors_of_the_grid_end_the_run(tmp_path, overloaded):
    with pytest.raises(OverloadedError):
        Federation(tmp_path / "run").run()


def test_a_site_that_never_answers_is_missing_at_the_deadline(tmp_path):
    run = federation(tmp_path, on_push=Trouble("lost", 1000))
    outcome = run.run()
    assert not outcome.complete
    cells = outcome.sites["east"].participation
    assert [(cell.state, cell.reason) for cell in cells if cell.state != "in"] == [
        ("missing", "silent")
    ]
    asked = [r for r in run.sites[1].seen if r.kind == "train" and r.round == 2]
    assert asked == []  # the messages never reached it
    assert 3 <= run.grid.pushed < 100  # it was asked again, and not without a pause


def test_failures_are_asked_again_ever_more_slowly(tmp_path):
    trouble = Trouble("error", 1000)
    federation(tmp_path, on_push=trouble).run()
    # 0.1 s, 0.2, 0.4, 0.8 and so on, in two seconds.
    assert 4 <= 1000 - trouble.left <= 6


def test_a_site_that_cannot_even_describe_itself_does_not_hold_up_the_others(tmp_path):
    def on_push(site, request):
        return "error" if (site.name, request.kind) == ("east", "describe") else None

    job = job_of(aggregate={"deadline_seconds": 5000.0})
    run = federation(tmp_path, on_push=on_push, job=job)
    outcome = run.run()
    assert [cost.contributors for cost in outcome.round_costs] == [3] * 5
    assert "node 2" in outcome.lost
    assert run.grid.clock.now < 100 + 4 * 60


@dataclass
class Busy(FakeSite):
    """Says twice that it is working before it answers a question of training."""

    told: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    forgets: bool = False

    def handle(self, body):
        request, tensors = decode_request(body)
        key = f"{request.kind} {request.round}"
        self.told[key] = self.told.get(key, 0) + 1
        if request.kind != "train" or self.told[key] > 3:
            return super().handle(body)
        self.sizes.append(len(tensors))
        if self.told[key] == 3:
            if self.forgets:  # as an agent that was killed before it had written anything
                self.held.clear()
            return super().handle(body)
        FakeSite.handle(self, body)  # it holds what came with the first message
        reply = Reply(
            kind="train",
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            site=self.name,
            status="working",
            seconds=1.0,
        )
        return encode(reply)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_site_that_is_working_is_asked_again(tmp_path, undisturbed, forgets):
    busy = Busy("east", forgets=forgets)
    sites = [busy if name == "east" else FakeSite(name) for name in NAMES]
    run = federation(tmp_path, sites=sites)
    outcome = run.run()
    assert outcome.complete
    assert outcome.shared.sha256() == undisturbed
    working = [event for event in run.events if event.kind == "site-working"]
    assert [(event.round, event.site) for event in working[:2]] == [(1, "east")] * 2
    # Nothing of the adapter is sent with a reminder.
    assert busy.sizes[0] > 0
    assert busy.sizes[1::3] == busy.sizes[2::3] == [0] * 5
