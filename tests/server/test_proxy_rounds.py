"""Distillation in the round loop: who it sees, when it comes, and that a killed run repeats it."""

import sqlite3

import pytest
from alembic import command
from fake_federation import Federation, job_of

from server.app import run_job
from server.history import RunHistory, database
from server.records import RoundRecord
from shared.adapter import SharedAdapter
from shared.errors import ConfigError
from shared.results import ProxyStep

NAMES = ("north", "east", "south")


class Halving:
    """Halves the factors in even rounds, and says no in odd ones; remembers what it saw."""

    def __init__(self):
        self.seen = []

    def distil(self, aggregated, came):
        self.seen.append((came.round, [update.site for update in came.updates], came.factors))
        accepted = came.round % 2 == 0
        after = 1.0 if accepted else None if came.round == 3 else 3.0
        step = ProxyStep(before=2.0 + came.round, after=after, accepted=accepted)
        if not accepted:
            return aggregated, step
        halved = {name: values / 2 for name, values in aggregated.factors.items()}
        return SharedAdapter(halved, aggregated.residual, aggregated.folds), step


def job(**proxy):
    return job_of(rounds=4, aggregate={"fold_every": 0}, proxy={"folder": "public", **proxy})


def federation(path, **proxy):
    return Federation(path / "run", job(**proxy), NAMES, options={"distiller": Halving()})


def steps(outcome):
    return {cost.round: cost.proxy for cost in outcome.round_costs}


def test_it_comes_after_every_round_and_sees_every_admitted_site(tmp_path):
    run = federation(tmp_path)
    run.sites[1].refuses = lambda request: "paused" if request.round == 2 else None
    outcome = run.run()
    everyone = sorted(NAMES)
    seen = run.options["distiller"].seen
    assert [(number, sites) for number, sites, _ in seen] == [
        (1, everyone), (2, ["north", "south"]), (3, everyone), (4, everyone),
    ]  # fmt: skip
    assert [factors for *_, factors in seen] == [("B",), ("A",), ("B",), ("A",)]
    assert steps(outcome) == {
        1: ProxyStep(before=3.0, after=3.0, accepted=False),
        2: ProxyStep(before=4.0, after=1.0, accepted=True),
        3: ProxyStep(before=5.0, after=None, accepted=False),
        4: ProxyStep(before=6.0, after=1.0, accepted=True),
    }


def test_what_it_returns_is_what_the_next_round_begins_with(tmp_path):
    plain = Federation(tmp_path / "plain" / "run", job(), NAMES).run()
    distilled = federation(tmp_path / "distilled").run()
    assert distilled.shared.sha256() != plain.shared.sha256()
    assert steps(plain) == dict.fromkeys(range(1, 5))


def test_every_so_many_rounds(tmp_path):
    run = federation(tmp_path, every=3)
    outcome = run.run()
    assert [number for number, *_ in run.options["distiller"].seen] == [3]
    assert {number for number, step in steps(outcome).items() if step} == {3}


def test_the_order_of_arrival_changes_nothing(tmp_path):
    one = federation(tmp_path / "one").run()
    turned = federation(tmp_path / "other")
    turned.order = -1
    assert turned.run().shared.sha256() == one.shared.sha256()
    assert all(sites == sorted(NAMES) for _, sites, _ in turned.options["distiller"].seen)


class CrashError(BaseException):
    """As if the process had been killed."""


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False])
def test_a_run_killed_around_its_commit_ends_with_the_same_bits(
    tmp_path, monkeypatch, last, before
):
    whole = federation(tmp_path / "whole").run()
    run = federation(tmp_path / "killed")
    record = RunHistory.record_round

    def dying(history, name, done: RoundRecord):
        if done.round != last:
            return record(history, name, done)
        if not before:
            record(history, name, done)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(RunHistory, "record_round", dying)
        with pytest.raises(CrashError):
            run.run()
    outcome = run.run()
    assert outcome.shared.sha256() == whole.shared.sha256()
    assert steps(outcome) == steps(whole)


def test_a_database_of_the_version_before_is_brought_up_to_date(tmp_path, monkeypatch):
    path = tmp_path / "history.sqlite"
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(database.command, "upgrade", lambda config, _: upgrade(config, "0001"))
        RunHistory.at(path).close()
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(rounds)")]
        assert "proxy_before" not in columns
        connection.execute(
            "INSERT INTO runs (id, name, token, job_sha256, base_sha256, seed, rounds_planned, "
            "status, started) VALUES (1, 'old', 't', 'j', 'b', 1, 1, 'finished', '2026-01-01')"
        )
        connection.execute(
            "INSERT INTO rounds (run_id, round, attempt, state, opened, factors, seconds, asked, "
            "contributors, resumed, adapter_sha256, manifest_sha256) VALUES "
            "(1, 1, 1, 'committed', '2026-01-01', 'B', 1.0, 2, 2, 0, 'x', 'm')"
        )
    with RunHistory.at(path) as history:
        (found,) = history.committed_rounds("old")
    assert (found.factors, found.proxy) == ("B", None)


def test_a_server_without_a_set_refuses_the_job():
    with pytest.raises(ConfigError, match="leave \\[proxy\\] out"):
        run_job(None, job(), None, None, None, "")
