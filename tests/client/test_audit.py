"""The audit log: edits, removals, truncation and a full rewrite are found (S14)."""

import hashlib
import json
import multiprocessing
import re

import pytest

from client.audit import FIRST, AuditLog
from client.audit_check import read_anchors, verify
from shared.errors import ConfigError, InputError
from shared.messages import Anchor


def log_of(path, lines=6, purpose="research"):
    log = AuditLog(path)
    for number in range(1, lines + 1):
        detail = {"purpose": purpose}
        log.append(run="run", round_number=number, what="approved train", detail=detail)
    return log


@pytest.fixture
def log(tmp_path):
    return log_of(tmp_path / "audit.jsonl")


def anchor_at(path, line):
    content = path.read_bytes().splitlines(keepends=True)[line - 1]
    return Anchor(seq=line, sha256=hashlib.sha256(content).hexdigest())


def forged(entries):
    """Return a log that holds together in itself."""
    last, lines = FIRST, []
    for number, entry in enumerate(entries, start=1):
        told = {**entry, "seq": number, "prev_sha256": last}
        line = json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        last = hashlib.sha256(line).hexdigest()
        lines.append(line)
    return b"".join(lines)


def test_a_log_that_nobody_touched_holds(log):
    anchors = [anchor_at(log.path, line) for line in (1, 4, 6)]
    checked = verify(log.path, anchors)
    assert (checked.lines, checked.anchors) == (6, 3)
    assert Anchor(seq=6, sha256=checked.head) == log.head() == anchors[-1]


def test_an_empty_log_has_no_head(tmp_path):
    assert AuditLog(tmp_path / "audit.jsonl").head() is None


@pytest.mark.parametrize("line", range(1, 6))
def test_an_edited_line_is_found_by_the_one_after_it(log, line):
    told = log.path.read_text().splitlines(keepends=True)
    told[line - 1] = told[line - 1].replace("research", "business")
    log.path.write_text("".join(told))
    with pytest.raises(InputError, match=rf"line {line + 1} does not follow from line {line}:"):
        verify(log.path)


def test_an_edit_of_the_last_line_is_found_by_its_anchor(log):
    anchor = anchor_at(log.path, 6)
    log.path.write_text(log.path.read_text()[::-1].replace("hcraeser", "ssenisub", 1)[::-1])
    assert verify(log.path).lines == 6
    with pytest.raises(InputError, match="up to line 6, was written anew"):
        verify(log.path, [anchor])


@pytest.mark.parametrize("change", ["remove", "swap", "insert", "repeat"])
def test_lines_that_were_removed_moved_or_put_in_are_found(log, change):
    told = log.path.read_bytes().splitlines(keepends=True)
    if change == "remove":
        del told[2]
    elif change == "swap":
        told[2], told[3] = told[3], told[2]
    else:
        told.insert(2, told[1] if change == "repeat" else told[4])
    log.path.write_bytes(b"".join(told))
    with pytest.raises(InputError, match=r"line 3 has the number \d: lines were removed, moved or"):
        verify(log.path)


@pytest.mark.parametrize("garbage", [b"\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b'{"seq": 3}\n'])
def test_a_line_that_is_none_is_named(log, garbage):
    told = log.path.read_bytes().splitlines(keepends=True)
    told[2] = garbage
    log.path.write_bytes(b"".join(told))
    with pytest.raises(InputError, match=r"line 3 cannot be read"):
        verify(log.path)


def test_lines_cut_off_at_the_end_are_found_by_an_anchor_and_only_so(log):
    anchors = [anchor_at(log.path, 2), anchor_at(log.path, 6)]
    told = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(told[:4]))
    assert verify(log.path).lines == 4
    with pytest.raises(InputError, match=r"has 4 lines, and line 6 was anchored: line 5 and"):
        verify(log.path, anchors)


def test_a_log_that_was_written_anew_is_found_by_an_anchor_and_only_so(log):
    anchors = [anchor_at(log.path, line) for line in (2, 4)]
    entries = [json.loads(line) for line in log.path.read_text().splitlines()]
    entries[2]["detail"] = {"purpose": "business"}
    log.path.write_bytes(forged(entries))
    assert verify(log.path).lines == 6
    with pytest.raises(InputError, match="line 3 or one after it, up to line 4, was written anew"):
        verify(log.path, anchors)
    # And one that begins with other lines altogether.
    log.path.write_bytes(forged([{**entry, "run": "other"} for entry in entries]))
    with pytest.raises(InputError, match="line 1 or one after it, up to line 2"):
        verify(log.path, anchors)


def test_a_log_that_was_removed_is_found(log):
    log.path.unlink()
    with pytest.raises(InputError, match="there is no audit log"):
        verify(log.path)
    log_of(log.path, lines=1)
    anchor = Anchor(seq=6, sha256="0" * 64)
    with pytest.raises(InputError, match="has 1 lines, and line 6 was anchored"):
        verify(log.path, [anchor])


def _append_many(path, number):
    log = AuditLog(path)
    for _ in range(30):
        log.append(run=f"process {number}", round_number=0, what="consent given")


def test_processes_of_one_site_write_one_chain(tmp_path):
    """The agent, and a command that withdraws consent beside it."""
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert verify(path).lines == 120


# --- what it is compared with


def test_an_anchor_is_given_inline_or_as_the_coordinators_file(tmp_path):
    digest = "a" * 64
    assert read_anchors(f"7:{digest}", "north") == [Anchor(seq=7, sha256=digest)]
    entries = [
        {"site": site, "run": "r", "phase": "round 1", "seq": seq, "sha256": digest}
        for site, seq in (("north", 2), ("south", 5), ("north", 9))
    ]
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps({"anchors": entries}))
    assert [each.seq for each in read_anchors(str(path), "north")] == [2, 9]
    with pytest.raises(ConfigError, match="holds no line of site west"):
        read_anchors(str(path), "west")


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"anchors": 3}', '{"anchors": [{"site": "north", "seq": 0}]}']
)
def test_anything_else_is_no_anchor(tmp_path, content):
    path = tmp_path / "anchors.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape("SEQ:SHA256")):
        read_anchors(str(path), "north")


@pytest.mark.parametrize("given", ["7:abc", "0:" + "a" * 64, "-1:" + "a" * 64])
def test_a_wrong_inline_anchor_is_none(given):
    with pytest.raises(ConfigError, match="SEQ:SHA256"):
        read_anchors(given, "north")
