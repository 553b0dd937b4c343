"""Remembering the one result that is asked for again and again.

The sites of a simulated federation receive the same job and the same adapter, one after the
other, in one process: what is worked out for the first is right for all that follow.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """The result for the latest key, and for no other.

    A key is a tuple. Texts and numbers in it are compared by value, everything else by
    identity: an object is the same only if it is the very same, which costs nothing to see.
    The objects live as long as the result, so they must not be changed.
    """

    def __init__(self) -> None:
        self._latest: tuple[tuple[object, ...], Value] | None = None

    def get(self, key: tuple[object, ...], make: Callable[[], Value]) -> Value:
        """Return the result for a key, made now if the latest key was another one."""
        latest = self._latest
        if latest is None or not _same(latest[0], key):
            # In one assignment, so that another thread sees key and result together.
            latest = self._latest = (key, make())
        return latest[1]


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(
        a is b or (isinstance(a, str | int) and a == b) for a, b in zip(one, other, strict=True)
    )
