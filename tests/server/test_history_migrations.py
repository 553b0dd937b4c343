"""Every released version of the tables comes up to the present one with all its data.

Or not at all: a kill in the middle leaves what was there before. On SQLite and on PostgreSQL.
"""

import datetime as dates
import os
import signal
import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, insert, inspect, select, text

from server.history import RunHistory, database
from server.history.tables import Table
from shared.errors import InputError

RELEASED = ["0001", "0002", "0003", "0004"]
"""Versions of the tables that some history out there may have; the last one is the present."""

MOMENT = dates.datetime(2026, 5, 4, 3, 2, 1, 123456)


def scripts():
    config = Config()
    config.set_main_option("script_location", str(database._MIGRATIONS).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def test_every_version_is_tested():
    known = [script.revision for script in scripts()[1].walk_revisions()]
    assert sorted(known) == RELEASED


def bring_to(url, revision):
    """Make the tables as a release had them."""
    config, _ = scripts()
    engine = database.make_database(url)
    with database.for_writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def value_of(column, row):
    """Something unlike everything else, of a column's type."""
    if column.name in ("run_id", "round_id"):
        return 1
    if column.name == "state":
        return "committed" if column.table.name == "rounds" else "in"
    kind = column.type.python_type
    size = getattr(column.type, "length", None) or 40
    made = {
        int: row, float: row + 0.125, bool: row % 2 == 0, str: f"{column.name}-{row}é"[-size:],
        dates.datetime: MOMENT + dates.timedelta(days=row),
    }[kind]  # fmt: skip
    if column.name == "status":
        return "finished"
    if column.name == "anchor_sha256":
        return f"{row:064x}"
    utc = kind is dates.datetime and getattr(column.type, "timezone", False)
    return made.replace(tzinfo=dates.UTC) if utc else made


def fill(url, count=3):
    """Put rows into every table."""
    engine = create_engine(url)
    tables = MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for table in tables.sorted_tables:
            if table.name != "alembic_version":
                rows = [
                    {c.name: value_of(c, n) for c in table.columns} for n in range(1, 1 + count)
                ]
                connection.execute(insert(table), rows)
        if engine.dialect.name == "postgresql":  # the counters, as if the rows had come in turn
            for name in ("runs", "rounds", "participations", "metrics", "artefacts", "audit"):
                connection.execute(text(f"SELECT setval('{name}_id_seq', {count})"))
    engine.dispose()


def content(url):
    """Return all rows of all tables, by table and column."""
    engine = create_engine(url)
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        found = {
            name: [dict(row._mapping) for row in connection.execute(select(table))]
            for name, table in tables.tables.items()
        }
    engine.dispose()
    return found


def is_kept(before, after):
    """Tell whether every row is there with every value that it had."""
    return all(
        sorted(str(sorted((key, row[key]) for key in old)) for row in after[name])
        == sorted(str(sorted(row.items())) for row in rows)
        for name, rows in before.items()
        if name != "alembic_version" and rows
        for old in rows[:1]
    )


def test_the_migrations_lead_to_the_present_tables(history_url):
    RunHistory(history_url).close()
    engine = create_engine(history_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        found = set(inspect(connection).get_table_names())
    engine.dispose()
    assert found == {*Table.metadata.tables, "alembic_version"}
    RunHistory(history_url).close()


@pytest.mark.parametrize("release", RELEASED)
def test_a_released_history_keeps_all_its_data(history_url, release, tmp_path):
    (tmp_path / "deep").mkdir()
    bring_to(history_url, release)
    fill(history_url)
    before = content(history_url)
    assert before["alembic_version"] == [{"version_num": release}]
    assert len(before["participations"]) == 3
    with RunHistory(history_url) as history:
        after = content(history_url)
        assert after["alembic_version"] == [{"version_num": RELEASED[-1]}]
        assert is_kept(before, after)
        summary = next(run for run in history.runs() if run.name == before["runs"][0]["name"])
        assert summary.status == "finished"
        assert summary.started == MOMENT.replace(tzinfo=dates.UTC) + dates.timedelta(days=1)
        rounds = history.committed_rounds(summary.name)
        assert [found.round for found in rounds] == [1, 2, 3]
        assert rounds[0].seconds == 1.125
        assert len(rounds[0].contributions) == 3
        # It goes on as a history that was always of this version.
        start = {"token": "t", "job_sha256": "j", "base_sha256": "b", "seed": 1, "rounds": 3}
        history.start_run("new", **start)
        assert history.open_round("new", 1) == 1
        assert history.open_round(summary.name, 2) == 3


def test_the_check_for_kept_data_sees_a_changed_value():
    before = {"runs": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    assert is_kept(
        before, {"runs": [{"id": 2, "name": "b", "more": 0}, {"id": 1, "name": "a", "more": 1}]}
    )
    assert not is_kept(before, {"runs": [{"id": 2, "name": "c"}, {"id": 1, "name": "a"}]})
    assert not is_kept(before, {"runs": [{"id": 1, "name": "a"}]})


@pytest.mark.parametrize(
    ("release", "survives"),
    [(None, 0), (None, 3), (None, 7), ("0001", 1), ("0001", 4), ("0002", 1), ("0003", 0)],
)
def test_an_upgrade_that_ends_midway_leaves_what_was_there(
    history_url, release, survives, monkeypatch, tmp_path
):
    """What a kill does: the connection is gone without a commit, after some changes were made."""
    (tmp_path / "deep").mkdir()
    if release is not None:
        bring_to(history_url, release)
        fill(history_url)
    before = content(history_url)
    made = []

    def dying(method):
        def change(self, *arguments, **keywords):
            if len(made) == survives:
                raise KeyboardInterrupt
            made.append(method(self, *arguments, **keywords))

        return change

    with monkeypatch.context() as patch:
        for name in ("create_table", "add_column", "create_index", "drop_column", "execute"):
            patch.setattr(Operations, name, dying(getattr(Operations, name)))
        with pytest.raises(KeyboardInterrupt):
            RunHistory(history_url)
    assert content(history_url) == before
    with RunHistory(history_url) as history:
        assert len(history.runs()) == (0 if release is None else 3)
    assert is_kept(before, content(history_url))


KILLED = """
import os, signal, sys
from alembic.operations import Operations
from server.history import RunHistory

add_column, count = Operations.add_column, [0]
def dying(self, *arguments, **keywords):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return add_column(self, *arguments, **keywords)
Operations.add_column = dying
RunHistory(sys.stdin.read())
"""


def test_a_process_killed_in_an_upgrade_leaves_the_old_version(history_url, tmp_path):
    (tmp_path / "deep").mkdir()
    bring_to(history_url, "0001")
    fill(history_url)
    before = content(history_url)
    done = subprocess.run(
        [sys.executable, "-c", KILLED], input=history_url.encode(), check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert content(history_url) == before
    RunHistory(history_url).close()
    assert is_kept(before, content(history_url))


def test_a_server_killed_in_an_upgrade_leaves_the_old_version(postgres, monkeypatch):
    """PostgreSQL itself dies; the upgrade waits for it and is done again, from its beginning."""
    name = postgres.database()
    url = postgres.url(name)
    bring_to(url, "0001")
    fill(url)
    before = content(url)
    seen, add_column = [], Operations.add_column

    def killing(self, *arguments, **keywords):
        add_column(self, *arguments, **keywords)
        seen.append(arguments[1].name)
        if len(seen) == 2:
            postgres.restart()
            assert content(url) == before

    monkeypatch.setattr(Operations, "add_column", killing)
    with RunHistory(url) as history:
        assert len(history.runs()) == 3
    assert seen[:2] == seen[2:4], "it was begun again"
    assert is_kept(before, content(url))


def test_a_later_version_is_refused_naming_both(history_url, monkeypatch):
    RunHistory(history_url).close()
    engine = create_engine(history_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "7.8.9")
    with pytest.raises(InputError) as caught:
        RunHistory(history_url)
    said = str(caught.value)
    assert "tables are of version 9999" in said
    assert f"consilia 7.8.9 knows them up to version {RELEASED[-1]}" in said
    assert "planted" not in said
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    engine.dispose()
