"""What the coordinator keeps of the sites' audit logs, and prints for them."""

import json

import pytest
from alembic import command as alembic
from alembic.config import Config
from sqlalchemy import create_engine, text

from client.audit import AuditLog
from client.audit_check import read_anchors, verify
from server.checkpoint import RunStore
from server.history import RunHistory
from server.history.database import _MIGRATIONS
from server.home import CoordinatorHome
from server.records import Contribution, RoundRecord
from shared.config import parse_job
from shared.errors import InputError
from shared.messages import Anchor

START = {"token": "t", "job_sha256": "j", "base_sha256": "b", "seed": 1, "rounds": 3}


def record(number, *contributions):
    return RoundRecord(
        round=number, attempt=1, factors="B", seconds=1.0, asked=2, contributors=1,
        relative_error=None, adapter_sha256="x", manifest_sha256=f"m{number}",
        contributions=list(contributions),
    )  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("CONSILIA_HISTORY", raising=False)
    return CoordinatorHome.at(tmp_path / "coordinator")


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "site" / "audit.jsonl")


@pytest.fixture
def kept(home, log):
    """A run of two rounds and an evaluation, of a site whose log is at hand; a second site."""
    job = parse_job({"name": "toy"})
    with RunStore.create(home.runs / "toy", job, base_sha256="b" * 64) as store:
        run = store.run
        with RunHistory(home.history_url) as history:
            history.start_run(run, **START)
            for number in (1, 2):
                log.append(run=run, round_number=number, what="approved train")
                anchor = log.head()
                log.append(run=run, round_number=number, what="update", body=b"update")
                other = Contribution(
                    "south", "refused", "policy-rank", anchor=Anchor(seq=7, sha256="c" * 64)
                )
                history.open_round(run, number)
                history.record_round(
                    run, record(number, Contribution("north", "in", anchor=anchor), other)
                )
        log.append(run=run, round_number=2, what="approved evaluate")
        kept = {"anchor": log.head().model_dump(), "evaluation": None}
        store.write_record("evaluations", "north", kept)
        store.write_record("personalized", "north", {"anchor": None})
    return run


def test_a_rounds_anchors_come_back_as_they_came(home, kept):
    with RunHistory(home.history_url) as history:
        rounds = history.committed_rounds(kept)
        found = [(each.site, each.phase, each.seq) for each in history.anchors(kept)]
    assert [c.anchor.seq for r in rounds for c in r.contributions] == [1, 7, 3, 7]
    assert found == [
        ("north", "round 1", 1), ("south", "round 1", 7), ("north", "round 2", 3),
        ("south", "round 2", 7),
    ]  # fmt: skip


def test_answers_to_a_round_that_came_to_nothing_are_anchored(home, kept):
    with RunHistory(home.history_url) as history:
        history.open_round(kept, 3)
        anchor = Anchor(seq=9, sha256="d" * 64)
        history.fail_round(kept, 3, 1, "quorum", [Contribution("north", "in", anchor=anchor)])
        assert history.anchors(kept)[-1].seq == 9


def test_a_site_compares_its_log_with_what_the_coordinator_prints(
    home, kept, log, command, tmp_path
):
    printed = command("server", "anchors", kept, "--home", home.folder, "--json")
    assert printed.code == 0
    file = tmp_path / "anchors.json"
    file.write_text(printed.out)
    anchors = read_anchors(str(file), "north")
    assert [each.seq for each in anchors] == [1, 3, 5]
    assert verify(log.path, anchors).anchors == 3
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:4]))
    assert verify(log.path).lines == 4
    with pytest.raises(InputError, match="line 5 was anchored"):
        verify(log.path, anchors)


def test_anchors_are_shown_by_site(home, kept, command):
    where = ("--home", home.folder)
    said = command("server", "anchors", *where, "--site", "south").out
    assert "c" * 64 in said
    assert "north" not in said
    assert "evaluate" in command("server", "anchors", *where).out
    told = json.loads(command("server", "anchors", *where, "--site", "north", "--json").out)
    assert {each["run"] for each in told["anchors"]} == {kept}
    ended = command("server", "anchors", *where, "--site", "west")
    assert ended.code == 2
    assert "site west" in ended.line
    assert command("server", "anchors", "nothing", *where).code == 2


def test_a_history_from_before_anchors_keeps_what_it_knew(tmp_path):
    url = f"sqlite:///{tmp_path / 'history.sqlite'}"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, "0002")
        connection.execute(
            text(
                "INSERT INTO runs VALUES (1, 'run', 't', 'j', 'b', 1, 3, 'running', NULL, "
                "'2026-01-01 00:00:00', NULL)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO rounds (id, run_id, round, attempt, state, opened, factors, seconds, "
                "asked, contributors, resumed) VALUES (1, 1, 1, 1, 'committed', "
                "'2026-01-01 00:00:00', 'B', 1.5, 1, 1, 0)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO participations (id, round_id, run_id, round, attempt, site, state, "
                "image_examples, text_examples, work_seconds, transfer_seconds, bytes_up, "
                "bytes_down, clipped, peak_memory_bytes) VALUES (1, 1, 1, 1, 1, 'north', 'in', "
                "50, 50, 1, 0, 10, 20, 0, 30)"
            )
        )
    engine.dispose()
    with RunHistory(url) as history:
        [old] = history.committed_rounds("run")
        [north] = old.contributions
        assert (north.site, north.bytes_up, north.anchor) == ("north", 10, None)
        assert history.anchors("run") == []
        history.open_round("run", 2)
        anchor = Anchor(seq=2, sha256="e" * 64)
        history.record_round("run", record(2, Contribution("north", "in", anchor=anchor)))
        assert [each.seq for each in history.anchors("run")] == [2]
