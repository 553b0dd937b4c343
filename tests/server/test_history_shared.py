"""One history for runs side by side: processes wait for each other and lose nothing."""

import contextlib
import multiprocessing as mp
import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from server.history import RunHistory, database
from server.records import Contribution, RoundRecord
from shared.errors import StorageError

ROUNDS = 10
START = {"token": "t", "job_sha256": "j", "base_sha256": "b", "seed": 1, "rounds": ROUNDS}


def record(number):
    return RoundRecord(
        round=number,
        attempt=1,
        factors="AB",
        seconds=1.0,
        asked=2,
        contributors=2,
        relative_error=0.0,
        adapter_sha256="a" * 64,
        manifest_sha256="m" * 64,
        contributions=[Contribution(f"site-{k}", "in", loss=0.5) for k in range(20)],
    )


def carry_out(url, name, ready, failures):
    """A run as the round loop writes it, as fast as it can, beginning with all others."""
    try:
        ready.wait(60)
        with RunHistory(url) as history:
            history.start_run(name, **START)
            for number in range(1, ROUNDS + 1):
                history.open_round(name, number)
                history.record_round(name, record(number))
                history.audit(name, "noted", number)
            history.finish_run(name, "finished")
    except Exception as error:
        failures.put(f"{name}: {error}")


def test_runs_of_two_processes_begin_and_write_at_once(history_url):
    """The tables are not there yet: they make it, upgrade them and write side by side."""
    context = mp.get_context("spawn")
    names = ["run-0", "run-1"]
    ready, failures = context.Barrier(len(names)), context.Queue()
    processes = [
        context.Process(target=carry_out, args=(history_url, name, ready, failures))
        for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0] * len(names)
    with RunHistory(history_url) as history:
        assert sorted(run.name for run in history.runs()) == names
        for name in names:
            assert history.run(name).status == "finished"
            rounds = history.committed_rounds(name)
            assert [done.round for done in rounds] == list(range(1, ROUNDS + 1))
            assert all(len(done.contributions) == 20 for done in rounds)
            assert len(history.audit_trail(name)) == ROUNDS


def test_what_another_has_written_since_it_began_is_no_reason_to_fail(history_url):
    """A transaction that has read and then writes must have been the only writer all along."""
    one, two = (RunHistory(history_url) for _ in range(2))
    with one, two:
        one.start_run("a", **START)
        two.start_run("b", **START)
        errors = []

        def write(history, name):
            try:
                for number in range(1, 60):
                    history.open_round(name, number)
            except StorageError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=write, args=(h, n)) for h, n in ((one, "a"), (two, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


@contextlib.contextmanager
def somebody_writing(url):
    """Another process, as far as the database knows, in the middle of a write."""
    engine = database.make_database(url)
    with database.for_writing(engine).connect() as connection:
        transaction = connection.begin()
        connection.execute(text("SELECT count(*) FROM runs"))
        yield connection
        transaction.rollback()
    engine.dispose()


def test_readers_do_not_wait_for_a_writer(history_url):
    with RunHistory(history_url) as history:
        history.start_run("a", **START)
        with somebody_writing(history_url) as connection:
            connection.execute(text("UPDATE runs SET status = 'failed'"))
            began = time.monotonic()
            assert [run.status for run in history.runs()] == ["running"]
            assert history.knows("a")
            assert time.monotonic() - began < 5


def test_a_writer_waits_for_its_turn(history_url):
    """It sees what the one before it wrote, and loses nothing."""
    with RunHistory(history_url) as history, RunHistory(history_url) as other:
        history.start_run("a", **START)
        attempts = []
        with somebody_writing(history_url):
            threads = [
                threading.Thread(target=lambda h=h: attempts.append(h.open_round("a", 1)))
                for h in (history, other, history, other)
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            assert attempts == []
        for thread in threads:
            thread.join(20)
        assert sorted(attempts) == [1, 2, 3, 4]


def test_a_reader_sees_one_moment(history_url):
    """A round that is committed in the middle of a reading is in all of it, or in nothing."""
    with RunHistory(history_url) as history, RunHistory(history_url) as other:
        history.start_run("a", **START)

        def read(session):
            before = session.scalar(text("SELECT count(*) FROM metrics"))
            other.record_round("a", record(1))
            return before, session.scalar(text("SELECT count(*) FROM participations"))

        assert history._transactions.read(read) == (0, 0)
        assert len(history.last_round("a").contributions) == 20


def test_a_writer_that_never_ends_is_said_after_a_while(history_url, monkeypatch):
    monkeypatch.setattr("server.history.sessions.PATIENCE", 0.2)  # seconds
    with RunHistory(history_url) as history:
        with (
            somebody_writing(history_url),
            pytest.raises(StorageError, match="another process has been writing"),
        ):
            history.start_run("a", **START)
        history.start_run("a", **START)


def test_a_writer_that_went_away_without_a_word_is_waited_for_no_longer(postgres, monkeypatch):
    """Its machine is gone: PostgreSQL ends its transaction, and others may write."""
    monkeypatch.setattr("server.history.sessions._FORGOTTEN_SECONDS", 1)
    url = postgres.url(postgres.database())
    with RunHistory(url) as history:
        history.start_run("a", **START)
        with somebody_writing(url) as gone:
            began = time.monotonic()
            assert history.open_round("a", 1) == 1
            assert 0.5 < time.monotonic() - began < 20
            with pytest.raises(DBAPIError, match="idle-in-transaction"):
                gone.execute(text("SELECT 1"))
