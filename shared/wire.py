"""How a body of the protocol rides in a Flower ``Message``; the only place with record keys.

The body is an ``Array`` of bytes in one ``ArrayRecord``, because Flower cuts arrays into
chunks of its own and stores equal ones once, which it does not do with configuration values.
The end of the body that many messages share, the adapter of a round above all, is a second
``Array``: then it is in memory once, and passes through Flower once.
What the bytes mean is decided in ``shared.messages``; the courier does not look inside.
"""

from flwr.app import Array, ArrayRecord, Message, RecordDict

from shared.errors import WireError
from shared.messages import RequestKind

MESSAGE_TYPES: dict[RequestKind, str] = {
    "describe": "query.describe",
    "train": "train",
    "personalize": "train.personalize",
    "evaluate": "evaluate",
    "secure-keys": "train.secure_keys",
    "secure-shares": "train.secure_shares",
    "secure-agree": "train.secure_agree",
    "secure-unmask": "train.secure_unmask",
}
"""Flower's message type, ``category`` or ``category.action``, for every kind of request."""

_RECORD = "consilia"
_ARRAY = "body"
_ENCLOSURE = "enclosure"
_SERIALIZATION = "consilia.body"


def to_message(
    body: bytes,
    node_id: int,
    kind: RequestKind,
    time_to_live: float | None = None,
    enclosure: Array | None = None,
) -> Message:
    """Wrap a request for a node.

    Args:
        body: What ``shared.messages.encode`` or ``encode_header`` returned.
        node_id: Flower's number of the node.
        kind: Chooses the function of the ClientApp that receives the message.
        time_to_live: Seconds after which Flower may drop the message; its own limit if not
            given.
        enclosure: The end of the body, if other messages have the same one; see ``sealed``.
    """
    content = _content(body, enclosure)
    return Message(content, dst_node_id=node_id, message_type=MESSAGE_TYPES[kind], ttl=time_to_live)


def sealed(enclosure: bytes) -> Array:
    """Return the end of many bodies for ``to_message``; Flower cuts and digests it once."""
    return Array("uint8", (len(enclosure),), _SERIALIZATION, enclosure)


def to_reply(body: bytes, request: Message) -> Message:
    """Wrap a reply to a message."""
    return Message(_content(body), reply_to=request)


def body_of(message: Message) -> bytes:
    """Return the body that a message carries, with its enclosure.

    Raises:
        WireError: If the message is an error of Flower's, or carries anything else.
    """
    if message.has_error():
        raise WireError(f"message: Flower reports error {message.error.code}")
    content = message.content
    record = content.get(_RECORD)
    if list(content) != [_RECORD] or not isinstance(record, ArrayRecord):
        raise WireError(f"message: expected the one record {_RECORD!r}, got {len(content)} records")
    if set(record) - {_ENCLOSURE} != {_ARRAY}:
        raise WireError(f"message: expected the one array {_ARRAY!r}, got {len(record)} arrays")
    body = _bytes_of(record[_ARRAY])
    return body + _bytes_of(record[_ENCLOSURE]) if _ENCLOSURE in record else body


def _bytes_of(array: Array) -> bytes:
    if (array.dtype, array.stype) != ("uint8", _SERIALIZATION):
        raise WireError(
            f"message: expected an array of uint8 as {_SERIALIZATION}, "
            f"got {array.dtype[:40]} as {array.stype[:40]}"
        )
    if tuple(array.shape) != (len(array.data),):
        raise WireError(f"message: expected {array.shape} bytes, got {len(array.data)}")
    return array.data


def _content(body: bytes, enclosure: Array | None = None) -> RecordDict:
    record = ArrayRecord()  # one that is given arrays would copy them
    record[_ARRAY] = Array("uint8", (len(body),), _SERIALIZATION, body)
    if enclosure is not None:
        record[_ENCLOSURE] = enclosure
    return RecordDict({_RECORD: record})
