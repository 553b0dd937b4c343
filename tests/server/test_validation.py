"""Each bad reply is refused with its own code."""

import json
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
from fake_federation import BASE, LAYOUT, FakeSite, job_of

from server.planning import Asking
from server.roster import KnownSite
from server.validation import Admitted, Expected, Rejected, judge, largest_body, reason_code
from shared.adapter import factor_name
from shared.messages import (
    Description,
    Reply,
    Request,
    TrainSummary,
    decode_reply,
    encode,
    stage_tensors,
)

NAME = factor_name("vision.q", "B")


def question(kind="train", weights=None, **changes):
    from server.aggregation import AltFold

    job = job_of()
    request = Request(
        kind=kind, run="r", round=3, attempt=2, base_sha256=BASE, job_sha256=job.digest(), job=job,
        factors=("B",), scale=1024.0,
    )  # fmt: skip
    site = KnownSite("north", 1, "paired", {"image": 10, "text": 10})
    asking = Asking(request.model_copy(update=changes), AltFold().start(LAYOUT, 1), LAYOUT)
    weights = {"image": 2, "text": 3} if weights is None else weights
    return asking.question(site, weights if kind == "train" else None)


def answer(asked, site=None):
    return (site or FakeSite("north")).handle(asked.body(True).joined())


def tampered(asked, **reply_changes):
    reply, tensors = decode_reply(answer(asked))
    tensors = reply_changes.pop("tensors", lambda t: t)(dict(tensors))
    return encode(reply.model_copy(update=reply_changes), tensors)


def rewritten(asked, change):
    """The reply with its JSON header changed behind the schema's back."""
    body = answer(asked)
    length = int.from_bytes(body[5:13], "little")
    header = json.loads(body[13 : 13 + length])
    change(header)
    text = json.dumps(header).encode()
    return body[:5] + len(text).to_bytes(8, "little") + text + body[13 + length :]


def reason_of(body, asked):
    verdict = judge(body, asked.expected)
    assert isinstance(verdict, Rejected)
    return verdict.reason


def test_admits_an_honest_reply():
    asked = question()
    verdict = judge(answer(asked), asked.expected)
    assert isinstance(verdict, Admitted)
    assert verdict.update.weights == {"image": 2, "text": 3}
    assert verdict.update.scale == 1024.0
    assert set(verdict.update.delta) == set(LAYOUT.names(["B"]))


def test_admits_a_reply_for_one_tower():
    asked = question(weights={"text": 5})
    verdict = judge(answer(asked), asked.expected)
    assert set(verdict.update.delta) == {factor_name("text.q", "B")}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("kind", "evaluate", "wrong-kind"),
        ("run", "other", "wrong-run"),
        ("round", 2, "wrong-round"),
        ("attempt", 1, "wrong-attempt"),
        ("site", "south", "wrong-site"),
        ("weights", {"image": 200, "text": 3}, "wrong-weights"),
        ("weights", {"image": 2}, "wrong-weights"),
        ("scale", 512.0, "wrong-scale"),
        ("summary", None, "no-content"),
    ],
)
def test_a_reply_must_belong_to_its_question(field, value, reason):
    asked = question()
    assert reason_of(tampered(asked, **{field: value}), asked) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {k: v for k, v in t.items() if k != NAME}, "tensor-names"),
        (lambda t: t | {"more": t[NAME]}, "tensor-names"),
        (lambda t: t | {NAME: t[NAME].astype(np.float32)}, "tensor-dtype"),
        (lambda t: t | {NAME: t[NAME].view(np.int32)}, "tensor-dtype"),
        (lambda t: t | {NAME: t[NAME].T}, "tensor-shape"),
        (lambda t: t | {NAME: t[NAME][:1]}, "tensor-shape"),
        (lambda t: t | {NAME: np.full((6, 2), 2**31, np.uint32)}, "out-of-range"),
        (lambda t: t | {NAME: np.full((6, 2), 2 * 16 * 1024 + 1, np.uint32)}, "out-of-range"),
        (lambda t: t | {NAME: np.full((6, 2), 2 * 15 * 1024, np.uint32)}, "norm-too-large"),
    ],
)
def test_a_change_must_have_the_names_shapes_and_range_that_were_asked(change, reason):
    asked = question()
    assert reason_of(tampered(asked, tensors=change), asked) == reason


def test_a_change_of_exactly_the_allowed_norm_passes():
    asked = question(weights={"image": 1})
    full = np.full((6, 2), np.uint32(round(16 / np.sqrt(12) * 1024)), np.uint32)

    def only_one(tensors):
        return {name: full if name == NAME else 0 * values for name, values in tensors.items()}

    assert isinstance(judge(tampered(asked, tensors=only_one), asked.expected), Admitted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "text", None])
def test_numbers_that_are_none_are_refused(value):
    asked = question()
    body = rewritten(asked, lambda header: header["summary"].update(loss=value))
    assert reason_of(body, asked) == "protocol"


@pytest.mark.parametrize("name", ["gradient_norms", "discrepancy"])
def test_a_negative_gradient_norm_or_ratio_is_refused(name):
    asked = question()
    body = rewritten(asked, lambda h: h["summary"].update({name: {"image": -1.0}}))
    assert reason_of(body, asked) == "metrics"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_evaluation_must_be_finite(value):
    asked = question("evaluate")
    assert isinstance(judge(answer(asked), asked.expected), Admitted)

    def spoil(header):
        header["evaluation"]["metrics"]["shared"]["auroc"]["value"] = value

    assert reason_of(rewritten(asked, spoil), asked) in {"metrics", "protocol"}


@pytest.mark.parametrize(
    "body",
    [b"", b"CONS", b"\x80\x04N.", b"CONS\x01" + (2**40).to_bytes(8, "little"), b"PK\x03\x04" * 50],
)
def test_what_does_not_follow_the_protocol_is_refused(body):
    asked = question()
    assert reason_of(body, asked) == "protocol"


@pytest.mark.parametrize("position", [4, 20, 200, 700, -1])
def test_a_damaged_body_is_refused_or_harmless(position):
    asked = question()
    body = bytearray(answer(asked))
    del body[position]
    assert reason_of(bytes(body), asked) == "protocol"


def test_unknown_fields_are_refused():
    asked = question()
    assert reason_of(rewritten(asked, lambda h: h.update(patient="x")), asked) == "protocol"


def test_a_body_that_is_too_large_is_not_even_read():
    asked = question()
    body = answer(asked) + bytes(largest_body(asked.expected))
    assert reason_of(body, asked) == "too-large"
    assert len(answer(asked)) < largest_body(asked.expected)


def test_a_refusal_keeps_the_sites_code_and_drops_free_text():
    asked = question()
    site = FakeSite("north", refuses=lambda _: "loss-not-finite")
    assert reason_of(answer(asked, site), asked) == "loss-not-finite"
    assert reason_code("Mr Smith's report says\nhello") == "unnamed"
    assert reason_code(None) == "unnamed"
    assert reason_code("x" * 64) == "unnamed"


def test_a_site_name_must_be_printable():
    asked = question("describe")
    expected = Expected("describe", "r", 3, 2, site=None)
    for name, fine in [("north", True), ("a\nb", False), (" a", False), ("Zürich 2", True)]:
        verdict = judge(answer(asked, FakeSite(name)), expected)
        assert isinstance(verdict, Admitted) == fine
        assert fine or verdict.reason == "site-name"


def test_a_request_for_missing_parts_is_told_apart():
    asked = question()
    body = FakeSite("north").handle(asked.body(True).joined())
    reply, _ = decode_reply(body)
    verdict = judge(encode(reply.model_copy(update={"status": "needs"})), asked.expected)
    assert verdict.needs


def test_with_privacy_a_loss_is_not_told_and_without_it_is():
    asked = question()
    private = replace(asked.expected, private=True)
    silent = rewritten(asked, lambda header: header["summary"].update(loss=None))
    assert isinstance(judge(silent, private), Admitted)
    assert judge(answer(asked), private) == Rejected("protocol", ANY)


# --- messages of secure aggregation -------------------------------------------------------------


def stage(tensors, **said):
    """What becomes of a reply within secure aggregation that may have 64 bytes."""
    expected = Expected("train", "run", 1, 1, "north", scale=2.0, message_bytes=64)
    fields = {"kind": "train", "run": "run", "round": 1, "attempt": 1, "site": "north"}
    verdict = judge(encode(Reply(**{**fields, "scale": 2.0, **said}), tensors), expected)
    return verdict.message if isinstance(verdict, Admitted) else verdict.reason


def test_in_secure_aggregation_a_message_comes_alone():
    masked = stage_tensors(b"masked")
    assert stage(masked) == b"masked"
    assert stage(stage_tensors(bytes(64))) == bytes(64)
    assert stage(stage_tensors(bytes(65))) == "tensor-shape"
    assert stage({"message": np.zeros(0, np.uint8)}) == "tensor-shape"
    assert stage({}) == "tensor-names"
    assert stage({**masked, "more": np.zeros(1, np.uint8)}) == "tensor-names"
    assert stage({"message": np.zeros((2, 3), np.uint8)}) == "tensor-shape"
    assert stage({"message": np.zeros(3, np.uint32)}) == "tensor-dtype"
    assert stage({"message": np.zeros(2**20, np.uint8)}) == "too-large"
    for beside in (
        {"summary": TrainSummary(loss=1.0)},
        {"weights": {"image": 3}},
        {"description": Description(kind="paired", examples={})},
    ):
        assert stage(masked, **beside) == "protocol"
    assert stage(masked, scale=4.0) == "wrong-scale"
