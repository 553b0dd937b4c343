"""What happens in a run, for progress bars and ``events.jsonl``.

Events hold site names, reason codes and numbers, never a text, a file name of an image or a
patient id: the fields of every kind are listed here, and others are refused. ``about`` of a site
that was dropped names versions, or fields of the job.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Final, Literal

from shared.files import storage_errors, write_whole

EventKind = Literal[
    "run-started", "run-resumed", "site-described", "site-connected", "site-disconnected",
    "waiting", "checkpoint-damaged", "round-started", "site-working", "site-replied",
    "site-dropped", "late-reply", "round-committed", "round-failed", "phase-started",
    "phase-progress", "run-finished",
]  # fmt: skip

FIELDS: Final[Mapping[EventKind, frozenset[str]]] = {
    "run-started": frozenset({"rounds"}),
    "run-resumed": frozenset({"rounds", "committed"}),
    "site-described": frozenset({"records"}),
    "site-connected": frozenset(),
    "site-disconnected": frozenset(),
    "waiting": frozenset({"present", "needed"}),
    "checkpoint-damaged": frozenset(),
    "round-started": frozenset({"cohort", "attempt", "factors"}),
    "site-working": frozenset({"seconds", "progress", "left"}),
    "site-replied": frozenset({"loss", "validation_loss", "seconds"}),
    "site-dropped": frozenset({"reason", "state", "about"}),
    "late-reply": frozenset({"reason"}),
    "round-committed": frozenset(
        {"seconds", "bytes_up", "bytes_down", "contributors", "asked", "loss"}
    ),
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
    """Appends events to a file, line by line, and shows them to a listener.

    Attributes:
        path: ``events.jsonl``; open from the first event on, until ``close``.
        listener: Called with every event after it was written.
    """

    path: Path
    listener: Callable[[Event], None] | None = None
    _file: FileIO | None = field(default=None, init=False, repr=False)

    def close(self) -> None:
        """Close the file; another event opens it again."""
        if self._file:
            self._file.close()
            self._file = None

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
        line = event.line().encode()
        with storage_errors(
            f"{self.path}: an event could not be written; the last committed round is "
            "intact; free space and resume the run"
        ):
            try:
                write_whole(self._file or self._open(), line)
            except OSError:
                self.close()  # what was written of the line is cut off when it is opened again
                raise
        if self.listener:
            self.listener(event)

    def _open(self) -> FileIO:
        """Open the file, unbuffered: what was written is not lost with the process."""
        self._drop_torn_line()
        self._file = FileIO(self.path, "a")
        return self._file

    def _drop_torn_line(self) -> None:
        """Cut off a last line that a crash left without its end."""
        if not self.path.exists():
            return
        with storage_errors(f"{self.path}: cannot be read"):
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)
