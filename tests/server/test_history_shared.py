"""One history for runs side by side: processes wait for each other and lose nothing."""

import multiprocessing as mp
import sqlite3
import threading
import time

import pytest

from server.history import RunHistory
from server.records import Contribution, RoundRecord
from shared.errors import StorageError

ROUNDS = 20
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


def carry_out(path, name, ready, failures):
    """A run as the round loop writes it, as fast as it can, beginning with all others."""
    try:
        ready.wait(60)
        with RunHistory.at(path) as history:
            history.start_run(name, **START)
            for number in range(1, ROUNDS + 1):
                history.open_round(name, number)
                history.record_round(name, record(number))
                history.audit(name, "noted", number)
            history.finish_run(name, "finished")
    except Exception as error:
        failures.put(f"{name}: {error}")


def test_runs_of_two_processes_begin_and_write_at_once(tmp_path):
    """The file is not there yet: they make it, upgrade it and write it side by side."""
    context = mp.get_context("spawn")
    names = ["run-0", "run-1"]
    ready, failures = context.Barrier(len(names)), context.Queue()
    path = tmp_path / "h.sqlite"
    processes = [
        context.Process(target=carry_out, args=(path, name, ready, failures)) for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0] * len(names)
    with RunHistory.at(path) as history:
        assert sorted(run.name for run in history.runs()) == names
        for name in names:
            assert history.run(name).status == "finished"
            rounds = history.committed_rounds(name)
            assert [done.round for done in rounds] == list(range(1, ROUNDS + 1))
            assert all(len(done.contributions) == 20 for done in rounds)
            assert len(history.audit_trail(name)) == ROUNDS


def test_what_another_has_written_since_it_began_is_no_reason_to_fail(tmp_path):
    """A transaction that has read and then writes must have been the only writer all along."""
    one, two = (RunHistory.at(tmp_path / "h.sqlite") for _ in range(2))
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


def test_readers_do_not_wait_for_a_writer(tmp_path):
    path = tmp_path / "h.sqlite"
    with RunHistory.at(path) as history:
        history.start_run("a", **START)
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert [run.name for run in history.runs()] == ["a"]
        assert history.knows("a")
        assert time.monotonic() - began < 5
        writer.execute("ROLLBACK")
        writer.close()


def test_a_writer_that_never_ends_is_said_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("server.history.database.PATIENCE", 0.2)  # seconds
    path = tmp_path / "h.sqlite"
    with RunHistory.at(path) as history:
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process has been writing"):
            history.start_run("a", **START)
        writer.execute("ROLLBACK")
        writer.close()
