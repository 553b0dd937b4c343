"""Whether a site's audit log is still what was written, line by line and against the coordinator.

The chain alone tells of lines that were changed, removed, moved or put in. Digests of lines that
the coordinator keeps (``consilia server anchors``) also tell of lines cut off at the end, and of
a log that was written anew as a whole.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from client.audit import FIRST
from shared.errors import ConfigError, InputError
from shared.messages import Anchor

_INLINE: Final = re.compile(r"([1-9][0-9]{0,14}):([0-9a-f]{64})")
_ENTRIES = TypeAdapter(list[dict[str, object]])


@dataclass(frozen=True)
class Checked:
    """A log that holds.

    Attributes:
        lines: How many there are.
        head: sha256 of the last one.
        anchors: How many digests it was compared with.
    """

    lines: int
    head: str
    anchors: int


def verify(path: Path, anchors: Sequence[Anchor] = ()) -> Checked:
    """Check the whole chain of an audit log, and that it has the lines it once had.

    Args:
        path: The log.
        anchors: Numbers and digests of its lines that were kept elsewhere.

    Raises:
        InputError: Naming the first line that is not what was written.
    """
    digests = [FIRST]
    for number, line in enumerate(_lines(path), start=1):
        _check_line(path, number, line, digests[-1])
        digests.append(hashlib.sha256(line).hexdigest())
    _compare(path, digests, anchors)
    return Checked(len(digests) - 1, digests[-1], len(anchors))


def read_anchors(given: str, site: str) -> list[Anchor]:
    """Return what a log is to be compared with.

    Args:
        given: ``SEQ:SHA256``, or a file that ``consilia server anchors --json`` wrote.
        site: Whose lines of it count.

    Raises:
        ConfigError: If it is neither, or names no line of the site.
    """
    inline = _INLINE.fullmatch(given)
    if inline:
        return [Anchor(seq=int(inline[1]), sha256=inline[2])]
    try:
        entries = _ENTRIES.validate_python(json.loads(Path(given).read_bytes())["anchors"])
        found = [
            Anchor.model_validate({"seq": entry["seq"], "sha256": entry["sha256"]})
            for entry in entries
            if entry["site"] == site
        ]
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise ConfigError(
            f"--anchor {given}: expected SEQ:SHA256, or the file that `consilia server anchors "
            "--json` wrote; ask the coordinator for it"
        ) from None
    if not found:
        raise ConfigError(f"--anchor {given}: holds no line of site {site}; ask for the right file")
    return found


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no audit log; it begins with the first request of a coordinator. If "
            "there was one, put back a copy"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _check_line(path: Path, number: int, line: bytes, before: str) -> None:
    """Raise unless a line follows from the one before it, whose digest is ``before``."""
    where = f"{path}: line {number} "
    try:
        entry = json.loads(line)
        seq, told = entry["seq"], entry["prev_sha256"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}cannot be read as a line of the log: it was changed") from None
    if not line.endswith(b"\n"):
        raise InputError(f"{where}is cut short: the log was changed, or its disk failed")
    if seq != number:
        raise InputError(
            f"{where}has the number {seq!r}: lines were removed, moved or put in before it"
        )
    if told != before:
        earlier = f"line {number - 1}" if number > 1 else "the beginning"
        raise InputError(
            f"{where}does not follow from {earlier}: one of the two was changed after it was "
            "written"
        )


def _compare(path: Path, digests: Sequence[str], anchors: Sequence[Anchor]) -> None:
    """Raise unless the lines are those whose digests were kept elsewhere."""
    good = 0
    for anchor in sorted(anchors, key=lambda each: each.seq):
        if anchor.seq >= len(digests):
            raise InputError(
                f"{path}: has {len(digests) - 1} lines, and line {anchor.seq} was anchored: line "
                f"{len(digests)} and those after it were cut off"
            )
        if digests[anchor.seq] != anchor.sha256:
            raise InputError(
                f"{path}: line {good + 1} or one after it, up to line {anchor.seq}, was written "
                "anew: what was anchored is another digest"
            )
        good = anchor.seq
