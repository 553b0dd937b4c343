"""One way to write content as bytes, for everything that is signed or digested.

The bytes are ``consilia <purpose>`` and a line feed, and then JSON with sorted keys, without
spaces and in ASCII. The purpose keeps a signature on one sort of thing from counting for another.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def canonical(purpose: str, content: Mapping[str, Any]) -> bytes:
    """Return the bytes that stand for some content.

    Args:
        purpose: What the content is, with its version, such as ``kit 1``.
        content: Texts, whole numbers, lists and tables.

    Raises:
        ValueError: If a number is not finite.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"consilia {purpose}\n{text}".encode()


def read_json(content: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON in which every key stands once.

    Raises:
        ValueError: If it is not JSON, not UTF-8, nested too deeply, or has a key twice.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table
