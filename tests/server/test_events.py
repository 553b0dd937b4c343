import json

import pytest

from server.events import FIELDS, Event, EventLog
from shared.errors import StorageError


def test_events_are_lines_of_json_and_reach_the_listener(tmp_path):
    heard = []
    log = EventLog(tmp_path / "events.jsonl", heard.append)
    log.emit("round-started", round_number=2, cohort=["a"], attempt=1, factors="B")
    log.emit("site-replied", round_number=2, site="a", loss=0.5, seconds=1.0)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["kind"], line["round"]) for line in lines] == [
        ("round-started", 2),
        ("site-replied", 2),
    ]
    assert lines[1]["site"] == "a"
    assert [event.kind for event in heard] == ["round-started", "site-replied"]
    assert heard[1].values["loss"] == 0.5


def test_fields_that_are_not_listed_are_refused():
    for kind in FIELDS:
        with pytest.raises(ValueError, match="patient"):
            Event(kind, values={"patient": "x"})


def test_no_field_could_hold_a_record():
    allowed = {field for fields in FIELDS.values() for field in fields}
    assert not allowed & {"text", "file_name", "patient_id", "path", "detail", "report"}


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("run-started", rounds=1)
    with path.open("a") as file:
        file.write('{"kind": "rou')
    EventLog(path).emit("run-finished", status="finished", rounds=1)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        "run-started",
        "run-finished",
    ]


def test_an_event_is_in_the_file_at_once(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(1, 4):
        log.emit("run-started", rounds=number)
        assert len(log.path.read_text().splitlines()) == number
    log.close()
    log.emit("run-finished", status="finished", rounds=3)
    assert len(log.path.read_text().splitlines()) == 4


def test_a_line_that_a_full_disk_cut_short_is_cut_off(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("run-started", rounds=1)
    file = log._file

    class Full:
        """Takes ten bytes more."""

        close = staticmethod(file.close)

        def write(self, line):
            return file.write(line[:10])

    log._file = Full()
    with pytest.raises(StorageError, match="no space left"):
        log.emit("run-started", rounds=2)
    log.emit("run-finished", status="failed", rounds=1)
    kinds = [json.loads(line)["kind"] for line in log.path.read_text().splitlines()]
    assert kinds == ["run-started", "run-finished"]


def test_an_event_that_cannot_be_written_says_what_to_do(tmp_path):
    with pytest.raises(StorageError, match="intact"):
        EventLog(tmp_path / "gone" / "events.jsonl").emit("run-started", rounds=1)
