"""Progress of a comparison: one bar on a terminal, one line per run elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shared.page.numbers import duration, number
from simulations.compare.plan import Task
from simulations.compare.scores import Scores


class Steps:
    """Shows which runs are done; use as a context.

    Args:
        console: Where to.
        count: Runs of the whole comparison.
    """

    def __init__(self, console: Console, count: int) -> None:
        self._console = console
        self._count = count
        self._done = 0
        self._bar = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("Runs", total=count)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False)

    def skip(self, count: int) -> None:
        """Leave out runs that need not be made, such as those of a row without a rate."""
        self._count -= count
        self._bar.update(self._task, total=self._count)

    def done(self, task: Task, scores: Scores, *, again: bool) -> None:
        """Note a run; ``again`` if it was there already."""
        self._done += 1
        what = f"{task.method}, rate {task.rate:g}, seed {task.seed}"
        self._bar.update(self._task, completed=self._done, description=what)
        if self._console.is_terminal:
            return
        said = "done before" if again else duration(scores.seconds or 0.0)
        loss = "no finite loss" if scores.loss is None else f"loss {number(scores.loss)}"
        use = " (to choose the rate)" if task.tuning else ""
        self.say(f"{self._done} of {self._count}: {what}{use}: {loss}, {said}")
