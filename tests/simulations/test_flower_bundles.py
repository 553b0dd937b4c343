"""Several bodies as one: what comes out is what went in, and nothing else is taken."""

import pytest

from shared.errors import WireError
from simulations.bundles import bundle, unbundle

HEADS = [(7, b"one"), (0, b""), (2, b"three " * 50)]


def test_bodies_come_back_in_order_with_the_tail_that_they_share():
    assert unbundle(bundle(HEADS)) == HEADS
    whole = bundle(HEADS, tail_bytes=4) + b"tail"
    assert unbundle(whole) == [(site, head + b"tail") for site, head in HEADS]


def test_the_tail_is_there_once():
    tail = b"x" * 10_000
    heads = [(number, b"head") for number in range(20)]
    assert len(bundle(heads, len(tail)) + tail) < 10_500


def test_a_bundle_that_was_cut_short_is_refused():
    whole = bundle(HEADS, 4) + b"tail"
    for length in range(len(whole)):
        with pytest.raises(WireError):
            unbundle(whole[:length])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"CONS\x02" + bytes(60),
        b"CONB\x02" + bundle(HEADS)[5:],
        bundle(HEADS) + b"more",
        bundle([(1, b"a"), (1, b"b")]),
        bundle(HEADS)[:5] + b"\xff\xff\xff\xff" + bundle(HEADS)[9:],
        bundle(HEADS)[:9] + b"\xff" * 8 + bundle(HEADS)[17:],
    ],
    ids=["empty", "a request", "version", "longer", "twice", "count", "tail"],
)
def test_anything_else_is_refused(content):
    with pytest.raises(WireError):
        unbundle(content)
