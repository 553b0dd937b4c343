"""A run whose ServerApp is gone is started again; one that ended or is not wanted is not."""

import pytest
from fake_federation import BASE, job_of

from server.checkpoint import RunStore
from server.history import RunHistory
from server.home import CoordinatorHome
from server.start import _TAKEN, Part, start_command
from server.vehicle import Vehicle, read_vehicle, write_vehicle
from server.watch import Watcher
from shared.errors import ConfigError, RunDirectoryError
from shared.files import held


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("CONSILIA_HISTORY", raising=False)
    monkeypatch.setattr(CoordinatorHome, "answers", lambda _: True)
    home = CoordinatorHome.at(tmp_path / "co")
    path = home.runs / "toy-1"
    with (
        RunStore.create(path, job_of(), base_sha256=BASE) as store,
        RunHistory(home.history_url) as history,
    ):
        facts = {"token": store.token, "job_sha256": store.job.digest(), "base_sha256": BASE}
        history.start_run("toy-1", **facts, seed=1, rounds=5)
    write_vehicle(path, Vehicle(7))
    return home


@pytest.fixture
def watched(home):
    started = []

    def again(run, vehicle):
        started.append((run, vehicle.flower_run))
        return vehicle.flower_run + 1

    return Watcher(home, again, Clock()), started


def look(watcher, *moments):
    for moment in moments:
        watcher.clock.now = moment
        watcher.look()


def test_a_run_that_nobody_takes_is_started_again_after_the_grace(home, watched):
    watcher, started = watched
    look(watcher, 0, 10, 29)
    assert started == []
    look(watcher, 31)
    assert started == [("toy-1", 7)]
    assert read_vehicle(home.runs / "toy-1") == Vehicle(8)
    look(watcher, 32, 60)
    assert len(started) == 1
    look(watcher, 63)
    assert started[1:] == [("toy-1", 8)]


def test_a_run_whose_serverapp_died_is_started_again_soon(home, watched):
    watcher, started = watched
    with RunStore.open(home.runs / "toy-1"):
        look(watcher, 0, 100)
    look(watcher, 101)
    assert started == []
    look(watcher, 102.5)
    assert started == [("toy-1", 7)]


def test_a_run_that_is_held_is_left_alone(home, watched):
    watcher, started = watched
    with RunStore.open(home.runs / "toy-1"):
        look(watcher, 0, 1000, 2000)
    assert started == []


@pytest.mark.parametrize("status", ["finished", "finished-incomplete", "failed"])
def test_a_run_that_ended_is_not_started_again(home, watched, status):
    watcher, started = watched
    with RunHistory(home.history_url) as history:
        history.finish_run("toy-1", status)
    look(watcher, 0, 31, 100)
    assert started == []
    assert read_vehicle(home.runs / "toy-1") == Vehicle(7, wanted=False)


def test_a_serverapp_that_was_told_to_end_is_started_again_if_the_run_is_wanted(home, watched):
    """Flower interrupts a ServerApp whose SuperExec died; the run calls that stopped."""
    watcher, started = watched
    with RunHistory(home.history_url) as history:
        history.finish_run("toy-1", "stopped")
    look(watcher, 0, 31)
    assert started == [("toy-1", 7)]


def test_a_run_that_is_not_wanted_is_not_started(home, watched):
    watcher, started = watched
    write_vehicle(home.runs / "toy-1", Vehicle(7, wanted=False))
    look(watcher, 0, 31, 100)
    assert started == []


def test_nothing_is_started_while_the_superlink_is_away(home, watched, monkeypatch):
    watcher, started = watched
    monkeypatch.setattr(CoordinatorHome, "answers", lambda _: False)
    look(watcher, 0, 31)
    assert started == []
    monkeypatch.setattr(CoordinatorHome, "answers", lambda _: True)
    look(watcher, 62)
    assert started == [("toy-1", 7)]


def test_one_coordinator_in_a_folder(tmp_path):
    home = CoordinatorHome.at(tmp_path / "co")
    with (
        held(home.folder, _TAKEN, "lock.gateway"),
        held(home.folder, _TAKEN, "lock.superlink"),
        pytest.raises(ConfigError, match="another coordinator"),
    ):
        start_command(home, 1, [Part.SUPERLINK])


def test_a_folder_that_flower_cannot_be_told_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="quotation marks"):
        CoordinatorHome.at(tmp_path / 'a"b')


@pytest.mark.parametrize("run", ["nothing", "../toy-1", "toy-1/checkpoints"])
def test_a_run_that_is_not_there_is_named(home, run):
    with pytest.raises(RunDirectoryError, match="not in"):
        home.run_path(run)
