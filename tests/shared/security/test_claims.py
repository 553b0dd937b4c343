"""What a signature is about, field by field, with bytes that can be checked by hand."""

import hashlib

import pytest

from shared.errors import WireError
from shared.security.claims import Claim, body_digest, objection, signature_of, split_signed
from shared.security.signing import SigningKey, verified

HEADER, REST = b"header", b"the adapter"


def sha(content):
    return hashlib.sha256(content).digest()


CLAIM = Claim(
    protocol=2,
    run="r1",
    round=3,
    attempt=1,
    site="a",
    base="b" * 64,
    job="c" * 64,
    body=body_digest(HEADER, sha(REST)),
)
KEY = SigningKey.new()
BODY = HEADER + REST


def signed_reply(claim=CLAIM, key=KEY):
    return split_signed(signature_of("reply", claim, key) + BODY)


def test_the_body_is_digested_in_two_halves():
    assert CLAIM.body == hashlib.sha256(sha(HEADER) + sha(REST)).hexdigest()


def test_a_signed_body_is_laid_out_as_documented():
    content = signature_of("reply", CLAIM, KEY) + BODY
    text = (
        b'{"attempt":1,"base":"' + b"b" * 64 + b'","body":"' + CLAIM.body.encode() + b'","job":"'
        b"" + b"c" * 64 + b'","protocol":2,"round":3,"run":"r1","site":"a"}'
    )
    head = b"CSIG\x01" + len(text).to_bytes(4, "little") + text
    assert content.startswith(head)
    assert content.endswith(BODY)
    assert len(content) == len(head) + 64 + len(BODY)
    signature = content[len(head) : len(head) + 64]
    assert verified(KEY.public, b"consilia reply 1\n" + text, signature)


def test_what_is_right_is_right():
    signed, body = signed_reply()
    assert body == BODY
    assert objection("reply", signed, CLAIM, [KEY.public]) is None
    assert objection("reply", signed, CLAIM, ["00" * 32, KEY.public]) is None


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("protocol", 3),
        ("run", "r2"),
        ("round", 4),
        ("attempt", 2),
        ("site", "b"),
        ("base", "d" * 64),
        ("job", "d" * 64),
        ("body", body_digest(HEADER, sha(b"another adapter"))),
    ],
)
def test_a_signature_counts_for_its_own_message_only(field, other):
    expected = CLAIM.model_copy(update={field: other})
    signed, _ = signed_reply()
    assert objection("reply", signed, expected, [KEY.public]) == f"reply-{field}"


def test_a_claim_that_was_changed_is_no_longer_signed():
    content = signature_of("reply", CLAIM, KEY) + BODY
    for old, new in ((b'"round":3', b'"round":4'), (b'"site":"a"', b'"site":"b"')):
        signed, _ = split_signed(content.replace(old, new))
        assert objection("reply", signed, CLAIM, [KEY.public]) == "reply-signature"


def test_missing_foreign_and_turned_signatures_are_told_apart():
    assert objection("reply", None, CLAIM, [KEY.public]) == "reply-unsigned"
    signed, _ = signed_reply(key=SigningKey.new())
    assert objection("reply", signed, CLAIM, [KEY.public]) == "reply-signature"
    signed, _ = signed_reply()
    assert objection("reply", signed, CLAIM, []) == "reply-signature"
    # A reply is no request, even with the same claim and key.
    assert objection("request", signed, CLAIM, [KEY.public]) == "request-signature"


def test_a_body_without_a_signature_passes_whole():
    assert split_signed(BODY) == (None, BODY)


def test_a_signature_that_cannot_be_read_is_no_body():
    content = signature_of("reply", CLAIM, KEY) + BODY
    claim_ends = len(content) - len(BODY) - 64
    damaged = [
        content[:7],
        content[: claim_ends + 63],
        content[:5] + b"\xff\xff\xff\xff" + content[9:],
        content.replace(b'"round":3', b'"round":"'),
        content.replace(b'"round":3', b'"rounx":3'),
        content.replace(b'"round":3', b'"site":""'),
    ]
    for each in damaged:
        with pytest.raises(WireError):
            split_signed(each)


def test_an_upper_bound_keeps_a_claim_small():
    with pytest.raises(WireError):
        split_signed(b"CSIG\x01" + (5000).to_bytes(4, "little") + b" " * 9000)
