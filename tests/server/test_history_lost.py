"""PostgreSQL goes away at any moment, and what is recorded is recorded once or not at all.

The network in between is cut at chosen bytes, or the server is killed and comes back.
"""

import random
import threading
import time

import pytest
from sqlalchemy import func, select, text

from server.history import HistoryAwayError, RunHistory
from server.history.tables import Table
from server.records import Contribution, RoundRecord
from shared.errors import StorageError
from tests.integration.network import BadNetwork, Weather

START = {"token": "t", "job_sha256": "j", "base_sha256": "b", "seed": 1, "rounds": 9}
SITES = 20


def record(number, attempt=1):
    return RoundRecord(
        round=number, attempt=attempt, factors="B", seconds=1.0, asked=SITES, contributors=SITES,
        relative_error=0.0, adapter_sha256="a" * 64, manifest_sha256="m" * 64,
        contributions=[Contribution(f"site-{n}", "in", loss=0.5) for n in range(SITES)],
    )  # fmt: skip


class Scissors:
    """Cuts the connection at a commit: before the server learns of it, or after it is done."""

    def __init__(self, when):
        self.when, self.cuts, self.armed, self.committing = when, 0, False, False

    def __call__(self, direction, piece):
        if not self.armed:
            return False
        if direction == "up" and b"COMMIT\0" in piece:
            if self.when == "before":
                return self._cut()
            self.committing = True
        if direction == "down" and self.committing:
            return self._cut()
        return False

    def _cut(self):
        self.armed = self.committing = False
        self.cuts += 1
        return True


@pytest.fixture(params=["before", "after"])
def cut(request, postgres):
    """A history behind scissors that cut the next commit; and the database's name."""
    scissors, name = Scissors(request.param), postgres.database()
    with BadNetwork(("127.0.0.1", postgres.port), judge=scissors) as network:
        url = postgres.url(name, port=network.port) + "?sslmode=disable"
        with RunHistory(url, patience=20) as history:
            assert not history.start_run("run", **START)
            yield history, scissors


def count(history, table):
    counting = select(func.count()).select_from(Table.metadata.tables[table])
    return history._transactions.read(lambda session: session.scalar(counting))


WRITES = {
    "start_run": (lambda h: h.start_run("new", **START), False, "runs", 1),
    "open_round": (lambda h: h.open_round("run", 1), 1, "rounds", 1),
    "record_round": (lambda h: h.record_round("run", record(1)), None, "participations", SITES),
    "fail_round": (
        lambda h: h.fail_round("run", 7, 1, "why", record(7).contributions),
        None, "participations", SITES,
    ),
    "withdraw_round": (lambda h: h.withdraw_round("run", 8, "damaged"), None, "audit", 1),
    "finish_run": (lambda h: h.finish_run("run", "finished"), "finished", "runs", 0),
    "audit": (lambda h: h.audit("run", "noted", 1), None, "audit", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_a_commit_whose_connection_breaks_takes_effect_once(cut, name):
    """Also when nobody was told that it took effect; the answer is that of the one time."""
    history, scissors = cut
    history.open_round("run", 7)
    history.record_round("run", record(8))
    write, answer, table, more = WRITES[name]
    before = count(history, table)
    scissors.armed = True
    assert write(history) == answer
    assert scissors.cuts == 1
    assert count(history, table) == before + more


def test_a_round_is_whole_after_every_cut(cut):
    """One cut in the middle of every round, at a statement of its own."""
    history, scissors = cut
    for number in range(1, 6):
        assert history.open_round("run", number) == 1
        scissors.armed = True
        history.record_round("run", record(number))
        scissors.armed = True
        history.audit("run", "noted", number)
    assert scissors.cuts == 10
    rounds = history.committed_rounds("run")
    assert [found.round for found in rounds] == [1, 2, 3, 4, 5]
    assert {len(found.contributions) for found in rounds} == {SITES}
    assert [entry.round for entry in history.audit_trail("run")] == [1, 2, 3, 4, 5]


def test_cuts_at_any_byte(postgres):
    """A network that forgets its connections every few kilobytes."""
    weather = Weather(cut_after=30_000)
    with BadNetwork(("127.0.0.1", postgres.port), weather, seed=11) as network:
        url = postgres.url(postgres.database(), port=network.port)
        with RunHistory(url, patience=30) as history:
            history.start_run("run", **START)
            for number in range(1, 9):
                history.record_round("run", record(number, history.open_round("run", number)))
                history.audit("run", "noted", number)
            rounds = history.committed_rounds("run")
            assert [(r.round, r.attempt, len(r.contributions)) for r in rounds] == [
                (number, 1, SITES) for number in range(1, 9)
            ]
            assert len(history.audit_trail("run")) == 8
        assert network.counts.cut >= 3


def test_a_database_that_is_away_is_waited_for(postgres):
    url = postgres.url(postgres.database())
    with RunHistory(url, patience=30) as history:
        history.start_run("run", **START)
        postgres.stop()
        later = threading.Timer(1.0, postgres.start)
        later.start()
        began = time.monotonic()
        assert history.open_round("run", 1) == 1
        assert time.monotonic() - began > 0.9
        later.join()
        assert history.knows("run")


def test_a_database_that_is_away_when_it_is_opened_is_waited_for(postgres):
    url = postgres.url(postgres.database())
    postgres.stop()
    later = threading.Timer(1.0, postgres.start)
    later.start()
    with RunHistory(url, patience=30) as history:
        assert history.runs() == []
    later.join()


def test_patience_ends(postgres):
    """The message names the database, and says that nothing was lost."""
    url = postgres.url(postgres.database())
    with RunHistory(url, patience=0.5) as history:
        history.start_run("run", **START)
        postgres.stop()
        try:
            began = time.monotonic()
            with pytest.raises(HistoryAwayError, match=r"cannot be reached.*is intact") as caught:
                history.open_round("run", 1)
            assert 0.4 < time.monotonic() - began < 10
            assert "consilia:***@127.0.0.1" in str(caught.value)
            history.be_brief()
            began = time.monotonic()
            with pytest.raises(HistoryAwayError):
                history.runs()
            assert time.monotonic() - began < 1
            with pytest.raises(HistoryAwayError):
                RunHistory(url, patience=0)
        finally:
            postgres.start()
        assert history.open_round("run", 1) == 1


def test_a_network_that_goes_dark_in_a_transaction_is_waited_for(postgres):
    with BadNetwork(("127.0.0.1", postgres.port)) as network:
        url = postgres.url(postgres.database(), port=network.port)
        with RunHistory(url, patience=30) as history:
            history.start_run("run", **START)
            network.go_dark(1.5)
            began = time.monotonic()
            history.record_round("run", record(1))
            assert time.monotonic() - began > 1.4
            assert len(history.last_round("run").contributions) == SITES


def test_an_error_of_the_work_itself_is_not_tried_again(postgres):
    with RunHistory(postgres.url(postgres.database()), patience=30) as history:
        history.start_run("run", **START)
        history.record_round("run", record(1))
        began = time.monotonic()
        with pytest.raises(StorageError, match="nothing is recorded twice"):
            history.record_round("run", record(1))
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_killed_again_and_again_loses_and_doubles_nothing(postgres, seed):
    """SIGKILL at random moments while rounds are committed as fast as it goes."""
    url = postgres.url(postgres.database())
    dice, stop = random.Random(seed), threading.Event()
    kills = []

    def killing():
        while not stop.is_set():
            time.sleep(dice.uniform(0.02, 0.3))
            postgres.restart()
            kills.append(time.monotonic())

    with RunHistory(url, patience=60) as history:
        history.start_run("run", **START)
        killer = threading.Thread(target=killing)
        killer.start()
        try:
            for number in range(1, 500):
                assert history.open_round("run", number) == 1
                history.record_round("run", record(number))
                history.audit("run", "noted", number)
                if len(kills) >= 5:
                    break
        finally:
            stop.set()
            killer.join()
        rounds = history.committed_rounds("run")
        assert [found.round for found in rounds] == list(range(1, number + 1))
        assert {len(found.contributions) for found in rounds} == {SITES}
        assert [entry.round for entry in history.audit_trail("run")] == list(range(1, number + 1))
    print(f"{len(kills)} kills in {number} rounds")


def test_tokens_do_not_pile_up(history_url):
    with RunHistory(history_url) as history:
        history.start_run("run", **START)
        history.audit("run", "noted", 1)
        assert count(history, "writes") == 2
        aged = text("UPDATE writes SET at = '2026-01-01'")
        history._transactions.write(lambda session: (session.flush(), session.execute(aged)))
        history.start_run("run", **START)
        assert count(history, "writes") == 1
