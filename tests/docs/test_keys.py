"""Follows docs/keys.md: its commands are run in order, and print what the page prints."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from client.release import REFUSALS
from shared.security.claims import Claim
from simulations import cli

PAGE = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")
CHANCE = re.compile(r"[A-Z2-7]{4}(?:-[A-Z2-7]{4}){7}|[0-9a-f]{32}")
"""Fingerprints and numbers of keys: others on every machine, and the same throughout the page."""


def sessions():
    """The commands of the page, each with what it prints."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def run(command, monkeypatch, capsys):
    words = shlex.split(command)
    assert words[0] == "consilia"
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out.splitlines()


def test_the_page_is_what_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = {}
    for command, shown in sessions():
        ours = CHANCE.sub(lambda match: here[match[0]], command)
        printed = run(ours, monkeypatch, capsys)
        for line, expected in zip(printed, shown, strict=True):
            for theirs, mine in zip(CHANCE.findall(expected), CHANCE.findall(line), strict=True):
                assert here.setdefault(theirs, mine) == mine
            assert CHANCE.sub("*", line) == CHANCE.sub("*", expected)
    assert len(here) == 5  # two numbers of keys, and fingerprints of consortium and keys


def test_every_reason_is_on_the_page():
    reasons = {name for name in REFUSALS if name.startswith("request-")}
    fields = {f"request-{name}" for name in Claim.model_fields}
    assert reasons == fields | {"request-unsigned", "request-signature", "request-stale"}
    for reason in reasons:
        shown = f"`{reason}`" in PAGE or f"`-{reason.removeprefix('request-')}`" in PAGE
        assert shown, reason
