"""Progress of a run: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from server.events import Event

_PHASES = {"personalize": "Fitting personal adapters", "evaluate": "Scoring on test patients"}


class RunProgress:
    """Shows the events of a run; use as a context.

    Args:
        console: Where to; a terminal gets bars, anything else gets one line per round.
        rounds: Rounds of the job.
    """

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._rounds = rounds
        self._round_bar = self._bars.add_task("Rounds", total=rounds, note="")
        self._site_bar: TaskID | None = None
        self._losses: list[float] = []
        self._replied = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, highlight=False)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        shown: dict[str, Callable[[Event], None]] = {
            "run-resumed": self._resumed,
            "checkpoint-damaged": self._damaged,
            "round-started": self._round_started,
            "site-replied": self._site_replied,
            "site-dropped": self._site_dropped,
            "round-committed": self._round_committed,
            "phase-started": self._phase_started,
            "phase-progress": self._phase_progress,
        }
        if event.kind in shown:
            shown[event.kind](event)

    def _resumed(self, event: Event) -> None:
        committed = int(str(event.values["committed"]))
        self.say(f"Resumed after round {committed} of {self._rounds}")
        self._bars.update(self._round_bar, completed=committed)

    def _damaged(self, event: Event) -> None:
        self.say(f"Round {event.round} is damaged on disk and is done again")

    def _round_started(self, event: Event) -> None:
        cohort = event.values["cohort"]
        total = len(cohort) if isinstance(cohort, list) else None
        self._losses, self._replied = [], 0
        self._new_site_bar(f"Round {event.round}: sites", total)

    def _new_site_bar(self, title: str, total: int | None) -> None:
        if self._site_bar is not None:
            self._bars.remove_task(self._site_bar)
        self._site_bar = self._bars.add_task(title, total=total, note="")

    def _site_replied(self, event: Event) -> None:
        loss = event.values.get("loss")
        if isinstance(loss, float):
            self._losses.append(loss)
        if self._site_bar is not None:
            self._bars.update(self._site_bar, advance=1, note=event.site or "")

    def _site_dropped(self, event: Event) -> None:
        unnumbered = "After the rounds" if self._site_bar is not None else "Before the rounds"
        when = f"Round {event.round}" if event.round else unnumbered
        self.say(f"{when}: without {event.site} ({event.values.get('reason')})")
        if self._site_bar is not None:
            self._bars.update(self._site_bar, advance=1)

    def _round_committed(self, event: Event) -> None:
        mean = event.values.get("loss")  # of a sum; with secure aggregation no site tells its own
        if self._losses:
            mean = sum(self._losses) / len(self._losses)
        # With differential privacy none is told.
        note = f"loss {mean:.3f}" if isinstance(mean, float) else "loss not told"
        self._bars.update(self._round_bar, completed=event.round, note=note)
        if not self._live:
            values = event.values
            self.say(
                f"Round {event.round} of {self._rounds}: {note}, "
                f"{values['contributors']} of {values['asked']} sites, {values['seconds']:.1f} s"
            )

    def _phase_started(self, event: Event) -> None:
        title = _PHASES.get(str(event.values["phase"]), str(event.values["phase"]))
        self._new_site_bar(title, int(str(event.values["n"])))
        if not self._live:
            self.say(title)

    def _phase_progress(self, event: Event) -> None:
        if self._site_bar is not None:
            done = int(str(event.values["done"]))
            self._bars.update(self._site_bar, completed=done, note=event.site or "")
