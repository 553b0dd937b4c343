"""Which version of Consilia speaks, so that two that do not understand each other can say so.

The protocol has a major number, which is the byte after a body's first four, and a minor one in
its header. Another major means that the messages differ; another minor that a message may hold
what the other side does not know. What stays the same in all versions is that a body begins as
``shared.messages`` says and that its header is a JSON object with ``minor`` and ``program``: so
each side can name the version of the other, whatever else it cannot read.
"""

import importlib.metadata
import json
import re
from functools import cache
from typing import Final

PROTOCOL: Final = 3
"""Major: programs with another one do not understand each other."""
MINOR: Final = 0
"""Grows when messages get a field that they had not."""

OTHER_VERSION: Final = "version"
"""Reason code of a message that cannot be read because it is another version's."""

VERSION_PATTERN: Final = r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,39}$"
_SHOWN = re.compile(VERSION_PATTERN)


@cache
def program_version() -> str:
    """Return the version of the program that runs here."""
    try:
        return importlib.metadata.version("consilia")
    except importlib.metadata.PackageNotFoundError:  # used from a folder, not installed
        return "0"


def difference(program: object, protocol: object, minor: object = 0) -> str:
    """Return the sentence that names both versions; what the other side says is not trusted.

    Args:
        program: Version of the other side's program, as it states it.
        protocol: Major version of its protocol.
        minor: Minor version of its protocol.
    """
    known = isinstance(program, str) and _SHOWN.fullmatch(program)
    other = f"consilia {program}" if known else "another version of consilia"
    numbers = ".".join(str(each) for each in (protocol, minor) if isinstance(each, int))
    return (
        f"the other side is {other} (protocol {numbers or 'unknown'}), this side is consilia "
        f"{program_version()} (protocol {PROTOCOL}.{MINOR}); install the same version at both ends"
    )


def stated_difference(header: bytes, protocol: int) -> str | None:
    """Return how the version that a header states differs from this one's, if it does.

    Args:
        header: JSON, of any version and from anybody.
        protocol: Major version that came before it.
    """
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    minor, program = found.get("minor", 0), found.get("program")
    if (protocol, minor, program) == (PROTOCOL, MINOR, program_version()):
        return None
    return difference(program, protocol, minor)
