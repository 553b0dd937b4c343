"""A run, its watcher and its commands while the history's database is away, and when it is back."""

import threading

import pytest
from fake_federation import BASE, Federation, job_of

from server.checkpoint import RunStore
from server.history import HistoryAwayError, RunHistory
from server.home import CoordinatorHome
from server.vehicle import Vehicle, read_vehicle, write_vehicle
from server.watch import Watcher

JOB = job_of(rounds=3, aggregate={"fold_every": 1})
NAMES = ("a", "b")


class OnPostgres(Federation):
    """A run whose history is in a PostgreSQL."""

    url: str
    patience = 30.0

    def history(self):
        return RunHistory(self.url, self.patience)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("whole") / "run", JOB, NAMES).run().shared.sha256()


@pytest.fixture
def run(tmp_path, postgres):
    made = OnPostgres(tmp_path / "run", JOB, NAMES)
    made.url = postgres.url(postgres.database())
    return made


@pytest.fixture
def away(postgres):
    """Stops the database; it is back at the end of the test, whatever happens."""
    yield postgres.stop
    if postgres.process.poll() is not None:
        postgres.start()


def when(number, act):
    """Act once, when the first site is asked to train in a round."""
    done = []

    def on_push(site, request):
        if (request.kind, request.round) == ("train", number) and not done:
            done.append(True)
            act()

    return on_push


def test_a_run_waits_for_its_history_and_goes_on(run, postgres, away, undisturbed):
    later = threading.Timer(1.0, postgres.start)

    def stop():
        away()
        later.start()

    run.on_push = when(2, stop)
    assert run.run().shared.sha256() == undisturbed
    later.join()
    assert "run-resumed" not in run.kinds(), "it went on by itself"
    with run.history() as history:
        assert history.run("run").status == "finished"
        assert [r.attempt for r in history.committed_rounds("run")] == [1, 1, 1]


def test_a_run_whose_patience_ends_has_not_failed(run, postgres, away, undisturbed):
    """Nothing is recorded of it, so that the watcher starts it again when the database is back."""
    run.on_push, run.patience = when(2, away), 0.2
    with pytest.raises(HistoryAwayError):
        run.run()
    assert "run-finished" not in run.kinds()
    postgres.start()
    run.on_push, run.patience = None, 30.0
    with run.history() as history:
        assert history.run("run").status == "running"
        assert [r.round for r in history.committed_rounds("run")] == [1]
    assert run.run().shared.sha256() == undisturbed
    with run.history() as history:
        assert [(r.round, r.attempt) for r in history.committed_rounds("run")] == [
            (1, 1), (2, 2), (3, 1),
        ]  # fmt: skip


def test_a_run_that_is_stopped_while_its_history_is_away_does_not_wait(run, away):
    """Ctrl-C, or Flower that ends a ServerApp."""

    def stop():
        away()
        raise KeyboardInterrupt

    run.on_push = when(2, stop)
    took = []
    timer = threading.Timer(20, lambda: took.append("too long"))
    timer.start()
    with pytest.raises(Exception, match="1 of 3 rounds are committed"):
        run.run()
    timer.cancel()
    assert took == []


def test_a_server_that_is_killed_in_a_run_costs_no_bit(run, postgres, undisturbed):
    run.on_push = when(3, postgres.restart)
    assert run.run().shared.sha256() == undisturbed
    with run.history() as history:
        assert history.run("run").status == "finished"


def test_the_watcher_starts_nothing_it_knows_nothing_of(tmp_path, postgres, away, monkeypatch):
    """While the history is away it cannot know whether a run is finished; then it asks again."""
    url = postgres.url(postgres.database())
    monkeypatch.setenv("CONSILIA_HISTORY", url)
    monkeypatch.setattr(CoordinatorHome, "answers", lambda _: True)
    home = CoordinatorHome.at(tmp_path / "co")
    path = home.runs / "toy-1"
    with RunStore.create(path, job_of(), base_sha256=BASE) as store, RunHistory(url) as history:
        facts = {"token": store.token, "job_sha256": store.job.digest(), "base_sha256": BASE}
        history.start_run("toy-1", **facts, seed=1, rounds=5)
    write_vehicle(path, Vehicle(7))
    started, now = [], [0.0]
    watcher = Watcher(home, lambda run, vehicle: started.append(run) or 8, lambda: now[0])
    watcher.look()
    away()
    for moment in (31.0, 31.5, 32.0):
        now[0] = moment
        with pytest.raises(HistoryAwayError):
            watcher.look()
    assert started == []
    postgres.start()
    now[0] = 32.5
    watcher.look()
    assert started == ["toy-1"]
    assert read_vehicle(path) == Vehicle(8)


def test_a_command_says_that_the_history_is_away_and_quotes_no_password(
    command, monkeypatch, tmp_path, postgres, away
):
    from tests.integration.postgres import PASSWORD

    url = postgres.url(postgres.database())
    away()
    monkeypatch.setattr(RunHistory.__init__, "__defaults__", (0.0,))
    # The command's own fixture takes the variable away, so it is set after that.
    monkeypatch.setenv("CONSILIA_HISTORY", url)
    ended = command("runs", "list", "--out", tmp_path)
    assert ended.code == 1
    assert "cannot be reached" in ended.line
    assert "resume" in ended.line
    assert PASSWORD not in ended.err + ended.out
