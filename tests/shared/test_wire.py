"""The body travels unseen and unchanged; a message with anything else in it is refused."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import WireError
from shared.wire import MESSAGE_TYPES, body_of, sealed, to_message, to_reply


@pytest.fixture(autouse=True, scope="module")
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@given(st.binary(max_size=300), st.sampled_from(sorted(MESSAGE_TYPES)))
def test_a_body_survives_the_trip_there_and_back(body, kind):
    message = to_message(body, 7, kind)
    assert body_of(message) == body
    assert message.metadata.dst_node_id == 7
    assert message.metadata.message_type == MESSAGE_TYPES[kind]
    reply = to_reply(body[::-1], message)
    assert body_of(reply) == body[::-1]


def test_a_body_survives_flowers_own_serialization():
    message = to_message(bytes(range(256)) * 40, 7, "train")
    array = message.content["consilia"]["body"]
    copy = Array.inflate(array.deflate(), array.children)
    assert copy.data == bytes(range(256)) * 40


@given(st.binary(max_size=50), st.binary(min_size=1, max_size=300))
def test_bodies_with_one_end_share_it(body, end):
    enclosure = sealed(end)
    one, other = (to_message(b, 7, "train", enclosure=enclosure) for b in (body, body + b"!"))
    assert body_of(one) == body + end
    assert body_of(other) == body + b"!" + end
    assert one.content["consilia"]["enclosure"] is other.content["consilia"]["enclosure"]


def test_flower_cuts_and_digests_a_shared_end_once(monkeypatch):
    enclosure = sealed(bytes(range(256)) * 40)
    first, second = (to_message(b"x", node, "train", enclosure=enclosure) for node in (1, 2))
    chunks = [message.content["consilia"]["enclosure"].slice_array() for message in (first, second)]
    assert chunks[0] is chunks[1]
    record = first.content["consilia"]
    copy = ArrayRecord.inflate(
        record.deflate(),
        {
            key: Array.inflate(array.deflate(), array.children)
            for key, array in record.children.items()
        },
    )
    travelled = message(RecordDict({"consilia": copy}))
    assert body_of(travelled) == b"x" + bytes(range(256)) * 40


def test_a_request_may_expire():
    assert to_message(b"x", 7, "train", time_to_live=12.5).metadata.ttl == 12.5


def message(content):
    return Message(content, dst_node_id=7, message_type="train")


GOOD = Array("uint8", (3,), "consilia.body", b"abc")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"consilia": ConfigRecord({"body": b"abc"})}),
        RecordDict({"other": ArrayRecord({"body": GOOD})}),
        RecordDict({"consilia": ArrayRecord({"body": GOOD}), "more": ConfigRecord({"x": 1})}),
        RecordDict({"consilia": ArrayRecord({"body": GOOD, "second": GOOD})}),
        RecordDict({"consilia": ArrayRecord({"other": GOOD})}),
        RecordDict({"consilia": ArrayRecord({"enclosure": GOOD})}),
        RecordDict(
            {
                "consilia": ArrayRecord(
                    {"body": GOOD, "enclosure": Array("uint8", (4,), "consilia.body", b"abc")}
                )
            }
        ),
        RecordDict({"consilia": ArrayRecord({"body": Array("uint8", (3,), "pickle", b"abc")})}),
        RecordDict(
            {"consilia": ArrayRecord({"body": Array("float32", (3,), "consilia.body", b"abc")})}
        ),
        RecordDict(
            {"consilia": ArrayRecord({"body": Array("uint8", (4,), "consilia.body", b"abc")})}
        ),
    ],
)
def test_anything_else_in_a_message_is_refused(content):
    with pytest.raises(WireError, match=r"^message: "):
        body_of(message(content))


def test_an_error_of_flowers_is_named_by_its_code_only():
    failed = Message(Error(code=2, reason="secret"), reply_to=message(RecordDict()))
    with pytest.raises(WireError) as caught:
        body_of(failed)
    assert str(caught.value) == "message: Flower reports error 2"
