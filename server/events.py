"""What happens in a run, for progress bars and ``events.jsonl``.

Events hold site names, reason codes and numbers, never a text, a file name of an image or a
patient id: the fields of every kind are listed here, and others are refused.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from shared.files import storage_errors

EventKind = Literal[
    "run-started", "run-resumed", "site-described", "checkpoint-damaged",
    "round-started", "site-replied", "site-dropped", "late-reply", "round-committed",
    "round-failed", "phase-started", "phase-progress", "run-finished",
]  # fmt: skip

FIELDS: Final[Mapping[EventKind, frozenset[str]]] = {
    "run-started": frozenset({"rounds"}),
    "run-resumed": frozenset({"rounds", "committed"}),
    "site-described": frozenset({"records"}),
    "checkpoint-damaged": frozenset(),
    "round-started": frozenset({"cohort", "attempt", "factors"}),
    "site-replied": frozenset({"loss", "validation_loss", "seconds"}),
    "site-dropped": frozenset({"reason", "state"}),
    "late-reply": frozenset({"reason"}),
    "round-committed": frozenset({"seconds", "bytes_up", "bytes_down", "contributors", "asked"}),
    "round-failed": frozenset({"reason"}),
    "phase-started": frozenset({"phase", "n"}),
    "phase-progress": frozenset({"phase", "done", "n"}),
    "run-finished": frozenset({"status", "rounds", "adapter_sha256"}),
}

Value = str | int | float | bool | None | list[str]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What.
        round: In which round, if in one.
        site: At which site, if at one.
        values: Further fields, as ``FIELDS`` allows.
        time: When, in UTC, ISO 8601.
    """

    kind: EventKind
    round: int | None = None
    site: str | None = None
    values: Mapping[str, Value] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def __post_init__(self) -> None:
        extra = set(self.values) - FIELDS[self.kind]
        if extra:
            raise ValueError(f"event {self.kind}: field {min(extra)!r} is not in its list")

    def line(self) -> str:
        """Return the event as one line of JSON."""
        named = {"time": self.time, "kind": self.kind, "round": self.round, "site": self.site}
        shown = {key: value for key, value in named.items() if value is not None}
        return json.dumps({**shown, **self.values}) + "\n"


@dataclass
class EventLog:
    """Appends events to a file and shows them to a listener.

    Attributes:
        path: ``events.jsonl``.
        listener: Called with every event after it was written.
    """

    path: Path
    listener: Callable[[Event], None] | None = None

    def __post_init__(self) -> None:
        self._drop_torn_line()

    def emit(
        self,
        kind: EventKind,
        *,
        round_number: int | None = None,
        site: str | None = None,
        **values: Value,
    ) -> None:
        """Record one event.

        Raises:
            StorageError: If it cannot be written.
        """
        event = Event(kind, round_number, site, values)
        with (
            storage_errors(
                f"{self.path}: an event could not be written; the last committed round is "
                "intact; free space and resume the run"
            ),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(event.line())
        if self.listener:
            self.listener(event)

    def _drop_torn_line(self) -> None:
        """Cut off a last line that a crash left without its end."""
        if not self.path.exists():
            return
        with storage_errors(f"{self.path}: cannot be read"):
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)
