import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from server.history import RunHistory
from server.history.rows import bucket
from server.history.tables import Table
from server.records import SURPLUS, Contribution, RoundRecord
from shared.errors import InputError, RunDirectoryError, StorageError

START = {"token": "t", "job_sha256": "j", "base_sha256": "b", "seed": 2**32 - 1, "rounds": 3}


@pytest.fixture
def history(tmp_path):
    with RunHistory.at(tmp_path / "deep" / "history.sqlite") as opened:
        opened.start_run("run", **START)
        yield opened


def contribution(site="a", state="in", **more):
    return Contribution(site, state, **more)


def record(number=1, attempt=1, contributions=None, **more):
    return RoundRecord(
        round=number, attempt=attempt, factors="B", seconds=1.5, asked=2, contributors=2,
        relative_error=0.0, adapter_sha256="x", manifest_sha256=f"m{number}",
        contributions=contributions or [contribution()], **more,
    )  # fmt: skip


@pytest.mark.parametrize("survives", [0, 1, 3])
def test_killed_while_the_tables_are_made_leaves_no_half_database(tmp_path, monkeypatch, survives):
    """What a kill does: the connection is gone without a commit, after some tables were made."""
    made, create = [], Operations.create_table

    def dying(self, *arguments, **keywords):
        if len(made) == survives:
            raise KeyboardInterrupt
        made.append(create(self, *arguments, **keywords))

    url = f"sqlite:///{tmp_path / 'history.sqlite'}"
    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_table", dying)
        with pytest.raises(KeyboardInterrupt):
            RunHistory(url)
    with sqlite3.connect(tmp_path / "history.sqlite") as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == []
    with RunHistory(url) as history:
        assert history.runs() == []


def test_migrations_lead_from_an_empty_database_to_the_present_tables(tmp_path):
    RunHistory.at(tmp_path / "h.sqlite").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'h.sqlite'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        tables = set(inspect(connection).get_table_names())
    assert tables == {
        "alembic_version", "artefacts", "audit", "metrics", "participations", "rounds", "runs",
    }  # fmt: skip
    RunHistory.at(tmp_path / "h.sqlite").close()


def test_sqlite_waits_for_the_disk(history, tmp_path):
    with history._engine.connect() as connection:
        asked = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        for pragma, wanted in asked.items():
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == wanted


def test_a_run_starts_once_and_goes_on(history):
    assert history.start_run("run", **START)
    assert not history.start_run("other", **START)
    with pytest.raises(RunDirectoryError, match="another run of this name"):
        history.start_run("run", **START | {"token": "u"})


def test_a_round_comes_back_as_it_was_recorded(history):
    full = contribution(
        "a", kind="image", examples={"image": 137}, seconds=2.0, work_seconds=1.0, bytes_up=2**40,
        loss=0.5, validation_loss=0.25, clipped=True, gradient_norms={"image": 0.125},
        discrepancy={"image": 4.0, "text": 0.25}, peak_memory_bytes=2**35,
    )  # fmt: skip
    wanted = record(contributions=[full, contribution("b", "missing", reason="deadline")])
    attempt = history.open_round("run", 1)
    assert attempt == 1
    history.record_round("run", wanted)
    (found,) = history.committed_rounds("run")
    assert found.bytes_up == 2**40
    first, second = found.contributions
    assert first.examples == {"image": 100, "text": 0}  # a bucket, not a count
    assert first.gradient_norms == {"image": 0.125}
    assert first.discrepancy == {"image": 4.0, "text": 0.25}
    assert (first.loss, first.validation_loss, first.clipped) == (0.5, 0.25, True)
    assert (second.state, second.reason, second.loss) == ("missing", "deadline", None)
    assert history.last_round("run") == found


def test_only_committed_rounds_count(history):
    assert history.last_round("run") is None
    history.open_round("run", 1)
    assert history.open_round("run", 1) == 2
    history.fail_round("run", 1, 2, "too few", [contribution("a", "refused", reason="data")])
    assert history.last_round("run") is None
    assert history.open_round("run", 1) == 3
    history.record_round("run", record(attempt=3))
    assert history.last_round("run").attempt == 3


def test_a_contribution_is_recorded_once(history):
    history.open_round("run", 1)
    twice = record(contributions=[contribution("a"), contribution("a")])
    with pytest.raises(StorageError, match="nothing is recorded twice"):
        history.record_round("run", twice)
    assert history.last_round("run") is None, "a round is recorded whole or not at all"
    history.record_round("run", record())
    with pytest.raises(StorageError, match="nothing is recorded twice"):
        history.record_round("run", record())


def test_the_database_itself_refuses_a_second_contribution(history, tmp_path):
    history.record_round("run", record())
    history.close()
    with sqlite3.connect(tmp_path / "deep" / "history.sqlite") as connection:
        columns = [c[1] for c in connection.execute("PRAGMA table_info(participations)")][1:]
        names = ", ".join(columns)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute(
                f"INSERT INTO participations ({names}) SELECT {names} FROM participations"  # noqa: S608
            )


@pytest.mark.parametrize(
    ("state", "reason", "status"),
    [
        ("in", None, "finished"),
        ("idle", None, "finished"),
        ("idle", SURPLUS, "finished"),
        ("missing", "deadline", "finished-incomplete"),
        ("missing", "node-unavailable", "finished-incomplete"),
        ("refused", "norm-too-large", "finished-incomplete"),
    ],
)
def test_a_run_that_lost_a_site_never_reports_plain_success(history, state, reason, status):
    lost = contribution("b", state, reason=reason)
    history.record_round("run", record(contributions=[contribution(), lost]))
    assert history.finish_run("run", "finished") == status
    summary = history.run("run")
    assert summary.status == status
    assert ("b" in (summary.reason or "")) == (status != "finished")
    assert summary.rounds == 1


def test_a_withdrawn_round_is_done_again(history):
    history.record_round("run", record(1))
    history.record_round("run", record(2))
    history.withdraw_round("run", 2, "damaged")
    assert history.last_round("run").round == 1
    assert history.open_round("run", 2) == 2
    history.record_round("run", record(2, attempt=2))
    assert [r.attempt for r in history.committed_rounds("run")] == [1, 2]
    assert [e.action for e in history.audit_trail("run")] == ["round-withdrawn"]


def test_runs_are_listed_latest_first(history):
    history.start_run("second", **START)
    assert [run.name for run in history.runs()] == ["second", "run"]
    assert history.run("second").seed == 2**32 - 1
    assert history.run("second").started.tzinfo is not None
    with pytest.raises(InputError, match="not in the history"):
        history.run("third")


def test_a_database_of_a_later_version_is_refused(tmp_path):
    RunHistory.at(tmp_path / "h.sqlite").close()
    with sqlite3.connect(tmp_path / "h.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InputError, match="later version of consilia"):
        RunHistory.at(tmp_path / "h.sqlite")


@pytest.mark.parametrize("url", ["nonsense", "nosuchdialect://x/y"])
def test_what_is_no_database_url_is_refused(url):
    with pytest.raises(InputError, match="expected a database URL"):
        RunHistory(url)


def test_a_password_is_never_shown():
    with pytest.raises((InputError, StorageError)) as caught:
        RunHistory("postgresql+psycopg://user:secret@127.0.0.1:1/x?connect_timeout=1")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_reported(tmp_path):
    (tmp_path / "h.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="is damaged, or no database"):
        RunHistory.at(tmp_path / "h.sqlite")


@pytest.mark.parametrize(
    ("count", "lower"),
    [(0, 0), (1, 1), (4, 2), (5, 5), (19, 10), (20, 20), (137, 100), (999, 500), (2048, 2000)],
)
def test_counts_are_kept_in_buckets(count, lower):
    assert bucket(count) == lower
