"""What a run's events tell of its sites: online, awaited until when, left out and why."""

import json

import pytest
from fake_federation import BASE, job_of
from rich.console import Console

import server.status
from server.checkpoint import RunStore
from server.forecast import Forecast
from server.history import RunHistory
from server.home import CoordinatorHome
from server.records import Contribution, RoundRecord
from server.site_status import Course
from server.status import run_status, status_command

NAMES = ["east", "north", "south", "west"]


def at(minute, kind, **fields):
    return {"time": f"2026-01-02T03:{minute:02d}:00+00:00", "kind": kind, **fields}


def course_of(*events, **seconds):
    course = Course({name: Forecast(each, own=True) for name, each in seconds.items()})
    course.follow(events)
    return course


DESCRIBED = [at(0, "site-described", site=name, records="paired") for name in NAMES]


def test_who_is_online_and_since_when():
    course = course_of(
        *DESCRIBED,
        at(5, "site-disconnected", site="east"),
        at(7, "site-disconnected", site="west"),
        at(9, "site-connected", site="west"),
    )
    found = {name: (site.online, site.since[14:16]) for name, site in course.sites.items()}
    assert found == {
        "east": (False, "05"),
        "north": (True, "00"),
        "south": (True, "00"),
        "west": (True, "09"),
    }
    course.follow([at(10, "run-resumed")])
    assert {site.online for site in course.sites.values()} == {None}  # nobody has looked yet


def test_who_is_awaited_and_until_when():
    course = course_of(
        *DESCRIBED,
        at(10, "round-started", round=3, cohort=NAMES),
        at(11, "site-working", round=3, site="east", seconds=30.0, progress=0.2, left=120.0),
        at(11, "site-working", round=3, site="north", seconds=30.0, progress=None, left=None),
        at(12, "site-replied", round=3, site="south"),
        north=600.0,
        south=60.0,
    )
    found = {
        n: (s.state, s.progress, s.finish and s.finish[14:19]) for n, s in course.sites.items()
    }
    assert found == {
        "east": ("working", 0.2, "13:00"),
        "north": ("working", None, "20:00"),  # by its earlier rounds
        "south": ("in", None, None),
        "west": ("awaited", None, None),  # nothing is known of it
    }
    assert course.phase == "round 3"


def test_who_was_left_out_and_why_in_full():
    fields = ["policy-steps: train.steps, train.epochs", "policy-rank: lora.rank"]
    course = course_of(
        *DESCRIBED,
        at(10, "round-started", round=1, cohort=NAMES),
        at(11, "site-dropped", site="east", state="refused", reason="policy-steps", about=fields),
        at(11, "site-dropped", site="north", state="refused", reason="loss-not-finite", about=[]),
        at(12, "site-dropped", site="south", state="missing", reason="silent", about=[]),
    )
    east, north, south = (course.sites[name] for name in NAMES[:3])
    assert (east.state, east.reason, east.about) == ("refused", "policy-steps", fields)
    assert (north.state, north.reason) == ("refused", "diverged")
    assert (south.state, south.reason, south.heard[14:16]) == ("missing", "silent", "00")
    course.follow([at(13, "round-started", round=2, cohort=NAMES)])
    assert (east.state, east.reason, east.about) == ("awaited", None, [])


def test_what_is_waited_for():
    course = course_of(*DESCRIBED, at(3, "waiting", present=1, needed=2))
    assert course.waiting == (1, 2)
    course.follow([at(4, "round-started", round=2, cohort=NAMES)])
    assert course.waiting is None


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("CONSILIA_HISTORY", raising=False)
    monkeypatch.setattr(CoordinatorHome, "answers", lambda _: True)
    return CoordinatorHome.at(tmp_path / "co")


@pytest.fixture
def under_way(home):
    """A run with a committed round, that a ServerApp works on."""
    path = home.runs / "toy-1"
    done = Contribution("east", "in", examples={"image": 10}, work_seconds=60.0)
    late = Contribution("north", "missing", "silent")
    record = RoundRecord(1, 1, "B", 70.0, 2, 1, None, "a" * 64, "m", [done, late])
    with (
        RunStore.create(path, job_of(), base_sha256=BASE) as store,
        RunHistory(home.history_url) as history,
    ):
        facts = {"token": store.token, "job_sha256": store.job.digest(), "base_sha256": BASE}
        history.start_run("toy-1", **facts, seed=1, rounds=5)
        history.open_round("toy-1", 1)
        history.record_round("toy-1", record)
        events = [
            *DESCRIBED[:2],
            at(1, "site-disconnected", site="north"),
            at(2, "round-started", round=2, cohort=["east"]),
            at(3, "waiting", present=1, needed=2),
        ]
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (path / "events.jsonl").write_text(lines + '{"torn')
        yield "toy-1"


def test_a_run_under_way_is_told_in_full(home, under_way, capsys):
    with RunHistory(home.history_url) as history:
        now = run_status(home, under_way, history.run(under_way))
    east, north = now.sites
    assert (now.phase, now.waiting, now.seconds_left) == ("round 2", "1 of 2 sites", 280.0)
    assert (east.online, east.finish, east.contributed, east.left_out) == (
        True, "2026-01-02T03:03:00+00:00", 1, 0,
    )  # fmt: skip
    assert (north.online, north.contributed, north.left_out) == (False, 0, 1)
    status_command(home, under_way, Console(width=120), as_json=False)
    printed = capsys.readouterr().out
    assert "round 2, waiting: 1 of 2 sites, about 4 min" in printed
    status_command(home, under_way, Console(width=120), as_json=True)
    tree = json.loads(capsys.readouterr().out)
    assert tree["runs"][0]["sites"][1]["online"] is False


def test_without_a_serverapp_nobody_knows_who_is_online(home, under_way, monkeypatch):
    monkeypatch.setattr(server.status, "is_locked", lambda _: False)
    with RunHistory(home.history_url) as history:
        now = run_status(home, under_way, history.run(under_way))
    assert {site.online for site in now.sites} == {None}
    assert "its ServerApp is gone" in now.reason


def test_watching_shows_it_anew_until_it_is_stopped(home, under_way, monkeypatch, capsys):
    shown = []

    def sleep(seconds):
        shown.append(seconds)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(server.status.time, "sleep", sleep)
    status_command(home, None, Console(width=120), as_json=False, watch=True)
    assert shown == [2.0] * 3
    assert "toy-1: running" in capsys.readouterr().out
