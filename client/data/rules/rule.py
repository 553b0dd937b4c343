"""What a rule is: a name, a severity, what it expects, and a function that complains."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from client.data.inspection import Inspection


@dataclass(frozen=True)
class Complaint:
    """Where a rule is broken, and how; never quotes the record."""

    row: int | None
    column: str | None
    message: str


Check = Callable[[Inspection], Iterator[Complaint]]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: Short name, as printed and documented.
        severity: Whether the data can be used all the same (``warning``) or not.
        expects: What the data must be like; a line of the documentation.
        check: Yields one complaint per broken place.
    """

    name: str
    severity: Literal["error", "warning"]
    expects: str
    check: Check


def found_while_reading(name: str) -> Check:
    """Return the check of a rule that reading a table, file or picture has applied already."""

    def pass_on(site: Inspection) -> Iterator[Complaint]:
        for problem in site.found:
            if problem.rule == name:
                yield Complaint(problem.where, problem.column, problem.message)

    return pass_on


def rows_listed(rows: Sequence[int], most: int = 8) -> str:
    """Return ``row 4`` or ``rows 4, 7, 9 and 12 more``."""
    shown = ", ".join(str(row) for row in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
