"""Every reason code that anybody can meet is in docs/reasons.md."""

import re
from pathlib import Path

import pytest

import server.forecast
import server.questions
import server.records
import server.signed_post
import server.validation
from client.release import REFUSALS
from server.flower_post import _FLOWER_ERRORS

PAGE = (Path(__file__).parents[2] / "docs" / "reasons.md").read_text()
LISTED = set(re.findall(r"`([a-z-]+)`", PAGE))
MODULES = (server.forecast, server.questions, server.records, server.signed_post, server.validation)
SERVERS = {
    value
    for module in MODULES
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*", value)
}


def test_there_are_codes_to_look_for():
    assert {"silent", "deadline", "norm-too-large", "reply-signature"} <= SERVERS


@pytest.mark.parametrize("code", sorted({*REFUSALS, *SERVERS, *_FLOWER_ERRORS.values()}))
def test_a_code_is_explained(code):
    assert code in LISTED


def test_the_page_invents_no_code():
    known = {*REFUSALS, *SERVERS, *_FLOWER_ERRORS.values(), "flower-error"}
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)}
    assert {code for code in named - known if not code.startswith("reply-")} == set()
