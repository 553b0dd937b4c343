"""What a check found, in words for the person who can mend it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The answer to one check.

    Attributes:
        name: Of the check.
        state: A ``fail`` keeps the site from taking part; a ``warn`` does not.
        found: What is there.
        expected: What should be; empty where nothing is wrong.
        do: What to do about it; empty where nothing is wrong.
    """

    name: str
    state: State
    found: str
    expected: str = ""
    do: str = ""


class NotCheckedError(Exception):
    """A check needs something that is not there, which another check has said already."""


def size(count: float) -> str:
    """Return a number of bytes for people; a kB has 1000 of them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
