import pytest
from sqlalchemy import MetaData, Table, create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError

from server.history import RunHistory
from server.history.rows import bucket
from server.records import SURPLUS, Contribution, RoundRecord
from shared.errors import InputError, RunDirectoryError, StorageError

START = {"token": "t", "job_sha256": "j", "base_sha256": "b", "seed": 2**32 - 1, "rounds": 3}


@pytest.fixture
def history(history_url):
    """A history with one run, on SQLite and on PostgreSQL."""
    with RunHistory(history_url) as opened:
        opened.start_run("run", **START)
        yield opened


@pytest.fixture
def database(history_url):
    """A connection to the same database past the history."""
    engine = create_engine(history_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def table(database, name):
    return Table(name, MetaData(), autoload_with=database)


def contribution(site="a", state="in", **more):
    return Contribution(site, state, **more)


def record(number=1, attempt=1, contributions=None, **more):
    return RoundRecord(
        round=number, attempt=attempt, factors="B", seconds=1.5, asked=2, contributors=2,
        relative_error=0.0, adapter_sha256="x", manifest_sha256=f"m{number}",
        contributions=contributions or [contribution()], **more,
    )  # fmt: skip


def test_sqlite_waits_for_the_disk(tmp_path):
    with RunHistory.at(tmp_path / "h.sqlite") as history:
        asked = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        for pragma, wanted in asked.items():
            assert scalar(history, f"PRAGMA {pragma}") == wanted


def scalar(history, statement):
    """What a connection of the history's own answers."""
    return history._transactions.read(lambda session: session.scalar(text(statement)))


def test_postgresql_waits_for_the_disk_even_where_it_was_told_not_to(postgres):
    name = postgres.database()
    postgres.run(f"ALTER DATABASE {name} SET synchronous_commit = off", "postgres")
    assert postgres.run("SHOW synchronous_commit", name) == [("off",)]
    with RunHistory(postgres.url(name)) as history:
        assert scalar(history, "SHOW synchronous_commit") == "on"
        assert scalar(history, "SHOW lock_timeout") == "1min"
        assert scalar(history, "SHOW idle_in_transaction_session_timeout") == "30s"
        assert scalar(history, "SHOW transaction_isolation") == "repeatable read"


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


def test_the_database_itself_refuses_a_second_contribution(history, database):
    history.record_round("run", record())
    participations = table(database, "participations")
    row = dict(database.execute(select(participations)).one()._mapping)
    with pytest.raises(IntegrityError):
        database.execute(insert(participations), {**row, "id": 1000})


def test_sites_are_in_the_order_of_their_names_whatever_the_database_makes_of_it(history):
    names = ["b", "B", "a-2", "a10", "é", "A"]
    history.record_round("run", record(contributions=[contribution(name) for name in names]))
    found = [each.site for each in history.last_round("run").contributions]
    assert found == sorted(names)


def test_texts_of_the_longest_kind_fit(history):
    """PostgreSQL refuses what is longer than its column; SQLite would not notice."""
    code, name = "x" * 63, "s" * 63
    lost = contribution(name, "refused", reason=code)
    history.record_round("run", record(contributions=[contribution(), lost]))
    history.finish_run("run", "failed", "long " * 1000)
    history.audit("run", "round-withdrawn", 1, "long " * 1000)
    assert history.last_round("run").contributions[1].reason == code


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


@pytest.mark.parametrize("url", ["nonsense", "nosuchdialect://x/y"])
def test_what_is_no_database_url_is_refused(url):
    with pytest.raises(InputError, match="expected a database URL"):
        RunHistory(url)


SECRETS = {
    "wrong password": "postgresql+psycopg://consilia:SeCrEt-1@127.0.0.1:{port}/postgres",
    "nobody there": "postgresql+psycopg://consilia:SeCrEt-1@127.0.0.1:1/x",
    "no such host": "postgresql+psycopg://consilia:SeCrEt-1@no-such-host.invalid/x",
    "no such database": "postgresql+psycopg://consilia:{password}@127.0.0.1:{port}/absent",
    "in a parameter": "postgresql+psycopg://127.0.0.1:1/x?user=consilia&password=SeCrEt-1",
    "an unknown parameter": "postgresql+psycopg://consilia:SeCrEt-1@127.0.0.1:1/x?unknown=SeCrEt-1",
    "an @ in it": "postgresql+psycopg://consilia:ab@SeCrEt-1@127.0.0.1:{port}/x",
    "no port": "postgresql+psycopg://consilia:SeCrEt-1@127.0.0.1:SeCrEt-1/x",
    "no URL": "postgresql+psycopg:/consilia:SeCrEt-1@127.0.0.1/x",
    "no dialect": "nosuchdialect://consilia:SeCrEt-1@127.0.0.1/x",
    "no driver": "postgresql+pg8000://consilia:SeCrEt-1@127.0.0.1/x",
    "in the URL of another": "mysql://consilia:SeCrEt-1@127.0.0.1/x",
}


@pytest.mark.parametrize("url", SECRETS.values(), ids=SECRETS)
def test_a_password_is_never_shown(url, postgres, caplog):
    from tests.integration.postgres import PASSWORD

    caplog.set_level("DEBUG")
    with pytest.raises((InputError, StorageError)) as caught:
        RunHistory(url.format(port=postgres.port, password=PASSWORD), patience=0)
    said = f"{caught.value} {caplog.text}"
    assert "SeCrEt" not in said
    assert PASSWORD not in said
    assert "\n" not in str(caught.value), "a message is one line"


def test_a_password_is_shown_by_no_failure_of_a_history_that_is_open(postgres, capfd):
    """Neither the database's own errors nor what is printed quote it."""
    from tests.integration.postgres import PASSWORD

    name = postgres.database()
    with RunHistory(postgres.url(name), patience=0) as history:
        assert PASSWORD not in history.shown + repr(history)
        history.start_run("run", **START)
        history.record_round("run", record())
        with pytest.raises(StorageError, match="recorded before") as twice:
            history.record_round("run", record())
        postgres.run("ALTER TABLE runs RENAME TO gone", name)
        with pytest.raises(StorageError, match="cannot be used") as gone:
            history.runs()
    printed = capfd.readouterr()
    assert PASSWORD not in f"{twice.value} {gone.value} {printed.out} {printed.err}"
    log = postgres.log.read_text()
    assert PASSWORD not in log


def test_a_full_disk_leaves_the_round_out_and_says_so(postgres):
    """What PostgreSQL answers when its disk is full; once there is room the round is recorded."""
    name = postgres.database()
    with RunHistory(postgres.url(name)) as history:
        history.start_run("run", **START)
        postgres.run(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE "
            "EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$", name
        )  # fmt: skip
        postgres.run(
            "CREATE TRIGGER disk_full BEFORE INSERT ON artefacts FOR EACH ROW "
            "EXECUTE FUNCTION full_disk()", name
        )  # fmt: skip
        with pytest.raises(StorageError, match=r"No space left on device.*free space"):
            history.record_round("run", record())
        assert history.last_round("run") is None
        postgres.run("DROP TRIGGER disk_full ON artefacts", name)
        history.record_round("run", record())
        assert history.last_round("run").round == 1


def test_a_full_disk_under_sqlite(tmp_path):
    with RunHistory.at(tmp_path / "h.sqlite") as history:
        history.start_run("run", **START)
        pages = scalar(history, "PRAGMA page_count")
        assert scalar(history, f"PRAGMA max_page_count = {pages}") == pages
        many = [contribution(f"site-{n}") for n in range(300)]
        with pytest.raises(StorageError, match=r"full.*what was committed is intact; free space"):
            history.record_round("run", record(contributions=many))
        assert history.last_round("run") is None
        scalar(history, "PRAGMA max_page_count = 100000")
        history.record_round("run", record(contributions=many))
        assert len(history.last_round("run").contributions) == 300


@pytest.mark.parametrize("damage", ["page", "cut"])
def test_a_damaged_sqlite_file_is_found_when_it_is_read(tmp_path, damage):
    path = tmp_path / "h.sqlite"
    with RunHistory.at(path) as history:
        history.start_run("run", **START)
        history.record_round("run", record(contributions=[contribution(f"{n}") for n in range(99)]))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged, or no database"), RunHistory.at(path) as h:
        h.committed_rounds("run")


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
