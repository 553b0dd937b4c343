"""Nothing private leaves: markers in everything private, and a search of everything else.

Markers stand in reports, file names, patient ids, errors and the personal adapter's values.
After rounds, personalization and evaluation they are looked for in every byte on the wire, in
the run directory but for the sites' own folders, in the database, in logs and on stderr.
"""

import contextlib
import csv
import io
import logging
import sqlite3
from hashlib import sha256
from json import loads

import numpy as np
import pytest
from safetensors.numpy import load_file

import client.work
from client.audit_check import verify
from server.history import RunHistory
from shared.errors import InputError
from shared.messages import Anchor, decode_reply
from shared.wire import body_of
from simulations.grid import LocalGrid

REPORT, FILE, PATIENT = "zebrareport", "zebrafile", "zebrapatient"
ERROR = "zebraerror"
WORDS = (REPORT, FILE, PATIENT, ERROR)


def plant(folder):
    """Put markers into a site's table and its pictures' names."""
    table = folder / "metadata.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        if row["file_name"]:
            marked = f"{FILE}-{number}.png"
            (folder / row["file_name"]).rename(folder / marked)
            row["file_name"] = marked
        if row["text"]:
            row["text"] += f" {REPORT}"
        row["patient_id"] = f"{PATIENT}-{row['patient_id']}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Tapped(LocalGrid):
    """Keeps every body that crosses it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.up, self.down = [], []

    def push_messages(self, messages):
        batch = list(messages)
        self.down.extend(body_of(message) for message in batch)
        return super().push_messages(batch)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            self.up.append(reply.error.reason.encode() if reply.has_error() else body_of(reply))
        return replies


def private_values(run):
    """Bytes of numbers that only a personal adapter holds: any eight values in a row."""
    needles = []
    for file in run.glob("sites/*/personal/*.safetensors"):
        for array in load_file(file).values():
            flat = np.ascontiguousarray(array).ravel()
            middle = len(flat) // 2
            needle = flat[middle : middle + 8]
            if np.count_nonzero(needle) == 8:
                needles.append(needle.tobytes())
    return needles


@pytest.fixture(scope="module")
def ran(make_federation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("markers")
    federation = make_federation(folder, ("paired", "image", "text"))
    for site in (folder / "data").iterdir():
        plant(site)
    failures = iter(range(100))
    train_shared = client.work.train_shared

    def sometimes(encoder, tasks, job):
        if next(failures) == 4:  # one site fails in the second round, quoting a report
            raise ValueError(f"{ERROR}: {tasks[0].data.splits['train'].texts[0]}")
        return train_shared(encoder, tasks, job)

    grids = []

    def grid_of(agents):
        grids.append(Tapped(agents))
        return grids[-1]

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            patch.setattr(client.work, "train_shared", sometimes)
            outcome = federation.run(folder / "run", grid_of)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return {
        "outcome": outcome,
        "run": folder / "run",
        "up": grids[0].up,
        "down": grids[0].down,
        "said": said.getvalue().encode(),
    }


def shared_files(run):
    return [
        path
        for path in run.rglob("*")
        if path.is_file() and "sites" not in path.relative_to(run).parts[:1]
    ]


def test_nothing_private_leaves_a_site(ran):
    run = ran["run"]
    # The run did what it should: personal adapters exist, one training failed, all evaluated.
    assert len(list(run.glob("sites/*/personal/*.safetensors"))) == 3
    assert [r.reason for body in ran["up"] for r, _ in [decode_reply(body)] if r.reason] == [
        "internal"
    ]
    assert len(ran["outcome"].evaluations) == 3
    assert b"request refused: internal (ValueError" in ran["said"]
    needles = [word.encode() for word in WORDS]
    values = private_values(run)
    assert len(values) > 10
    needles += values

    places = {f"up {n}": body for n, body in enumerate(ran["up"])}
    places |= {f"down {n}": body for n, body in enumerate(ran["down"])}
    places |= {str(path.relative_to(run)): path.read_bytes() for path in shared_files(run)}
    places["said"] = ran["said"]
    assert any(place.endswith("shared.safetensors") for place in places)
    assert any(place.endswith("history.sqlite") for place in places)
    assert "events.jsonl" in places
    found = {place for place, content in places.items() for needle in needles if needle in content}
    assert found == set()


def test_the_search_would_find_what_it_looks_for(ran):
    run = ran["run"]
    values = private_values(run)
    own = b"".join(p.read_bytes() for p in run.glob("sites/*/personal/*.safetensors"))
    assert all(needle in own for needle in values)
    data = run.parent / "data"
    tables = b"".join(p.read_bytes() for p in data.glob("*/metadata.csv"))
    assert all(word.encode() in tables for word in (REPORT, FILE, PATIENT))


def test_what_goes_up_is_a_change_in_fixed_point_or_numbers_of_the_schema(ran):
    kinds = set()
    for body in ran["up"]:
        reply, tensors = decode_reply(body)
        kinds.add(reply.kind)
        assert all(array.dtype == np.uint32 for array in tensors.values())
        if reply.kind != "train":
            assert tensors == {}
        if reply.kind == "personalize":
            assert (reply.summary, reply.evaluation, reply.description) == (None, None, None)
    assert kinds == {"describe", "train", "personalize", "evaluate"}


def test_the_database_names_sites_and_numbers_only(ran):
    with sqlite3.connect(ran["run"] / "history.sqlite") as database:
        dump = "\n".join(database.iterdump())
    assert "a-paired" in dump
    assert not any(word in dump for word in WORDS)


def test_the_audit_log_accounts_for_every_byte_that_went_up(ran):
    lines = [
        loads(line)
        for path in ran["run"].glob("sites/*/audit.jsonl")
        for line in path.read_text().splitlines()
    ]
    bodies = sorted(line["sha256"] for line in lines if "bytes" in line)
    assert bodies == sorted(sha256(body).hexdigest() for body in ran["up"])
    decisions = [line["what"] for line in lines if "bytes" not in line]
    assert {what.split()[0] for what in decisions} == {"approved"}


def test_the_coordinator_keeps_a_line_of_every_sites_log_from_every_round(ran):
    with RunHistory.at(ran["run"] / "history.sqlite") as history:
        [run] = history.runs()
        kept = history.anchors(run.name)
        contributions = [len(r.contributions) for r in history.committed_rounds(run.name)]
    assert len(kept) == sum(contributions)
    for path in ran["run"].glob("sites/*/audit.jsonl"):
        anchors = [
            Anchor(seq=each.seq, sha256=each.sha256)
            for each in kept
            if each.site == path.parent.name
        ]
        assert len(anchors) == len(contributions)
        assert verify(path, anchors).anchors == len(anchors)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"simulation", b"simulatiom", 1))
        try:
            with pytest.raises(InputError):
                verify(path, anchors)
        finally:
            path.write_bytes(content)


def test_files_of_a_site_are_its_own(ran):
    for path in ran["run"].glob("sites/*/**/*"):
        assert path.stat().st_mode & 0o077 == 0, path.relative_to(ran["run"])


def test_numbers_are_not_hidden_in_another_form(ran):
    """No reply to personalize or evaluate is large enough to hold an adapter."""
    for body in ran["up"]:
        reply, _ = decode_reply(body)
        if reply.kind in ("personalize", "describe"):
            assert len(body) < 2000
        if reply.kind == "evaluate":
            assert len(body) < 40_000
