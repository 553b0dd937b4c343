"""What all benchmarks share on the command line, on the screen and on disk."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import LoadWatch, describe_machine
from benchmarks.schema import Missing, Ratio, Report, Row

RESULTS = Path(__file__).parent / "results"
LEAST_REPEATS = 5
_LOG_WIDTH = 110

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched while the clock runs


def standard_parser(
    description: str | None, repeats: int = LEAST_REPEATS
) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has."""
    first = (description or "").strip().splitlines()
    parser = argparse.ArgumentParser(description=first[0] if first else None)
    turns = "timed turns of every arm (default: %(default)s)"
    parser.add_argument("--repeats", type=_positive, default=repeats, help=turns)
    folder = "folder for the JSON (default: benchmarks/results)"
    parser.add_argument("--out", type=Path, default=RESULTS, help=folder)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 on")
    return number


class Session:
    """One run of one benchmark: collects rows, then prints and writes them.

    Attributes:
        repeats: Timed turns of every arm.
        watch: Probes how much of the machine is free.
    """

    def __init__(
        self, benchmark: str, title: str, repeats: int, console: Console | None = None
    ) -> None:
        self.repeats = repeats
        self.watch = LoadWatch()
        self._benchmark, self._title = benchmark, title
        self._console = console or _console()
        self._started = time.perf_counter()
        self._rows: list[Row] = []
        self._missing: list[Missing] = []

    def say(self, text: str) -> None:
        """Tell what is going on."""
        self._console.print(text, style="dim", highlight=False)

    def add(self, row: Row) -> None:
        """Add a finished row, and show it."""
        self._rows.append(row)
        self._console.print(row_table(row))
        for gate in row.gates:
            verdict = "passed" if gate.passed else "FAILED"
            self.say(f"gate {verdict}: {gate.name}: {gate.value:.2e}, at most {gate.limit:.0e}")

    def leave_out(self, name: str, reason: str) -> None:
        """Say that a row is not measured, and why."""
        self._missing.append(Missing(name=name, reason=reason))
        self._console.print(f"{name}: not measured: {reason}", highlight=False)

    def report(self) -> Report:
        """Return what was measured so far."""
        return Report(
            benchmark=self._benchmark,
            title=self._title,
            command=_command(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - self._started, 1),
            repeats=self.repeats,
            machine=describe_machine(),
            load=self.watch.load(),
            rows=self._rows,
            not_measured=self._missing,
        )

    def finish(self, folder: Path) -> int:
        """Write the JSON; return the exit code, 1 if a gate has failed."""
        report = self.report()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{report.benchmark}.json"
        path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if not report.rows:
            self._console.print(path, highlight=False)
            return 0
        load = report.load
        state = "contended: repeat it on a quiet machine" if load.contended else "quiet"
        self._console.print(
            f"{state} (spin probe {load.share:.2f}, load {load.average[0]} to {load.average[1]}), "
            f"{report.repeats} repeats, {report.seconds:.0f} s\n{path}",
            highlight=False,
        )
        return int(any(not gate.passed for row in report.rows for gate in row.gates))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    name = module.name if module is not None else Path(sys.argv[0]).name
    # Where the file was written is nobody else's business.
    given = [word for word in sys.argv[1:] if not word.startswith("--out=")]
    if "--out" in given:
        place = given.index("--out")
        del given[place : place + 2]
    return " ".join(["python -m", name, *given])


def row_table(row: Row) -> Table:
    """Return a row as a table: arms, ratios, numbers."""
    table = Table(title=row.name, title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("", "median", "range", "CPU", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    for arm in row.arms:
        spread = f"{min(arm.wall):.3g} to {max(arm.wall):.3g}"
        busy = "" if arm.cpu_median is None else f"{arm.cpu_median:.3g} s"
        table.add_row(arm.name, f"{arm.wall_median:.3g} s", spread, busy, "")
    table.add_section()
    for found in row.ratios:
        table.add_row(*ratio_cells(found))
    table.add_section()
    for name, value in row.numbers.items():
        table.add_row(name, f"{value:,.4g}", "", "", "")
    return table


def ratio_cells(found: Ratio) -> Sequence[str]:
    """Return a ratio as five cells: name, value, range, in CPU time, target."""
    target = ""
    if found.target is not None:
        sign = "≥" if found.target.bound == "at least" else "≤"
        target = f"{sign} {found.target.value:g}: {'met' if found.met else 'not met'}"
    cpu = "" if found.cpu is None else f"{found.cpu:.2f}"
    return found.name, f"{found.value:.2f}", f"{found.low:.2f} to {found.high:.2f}", cpu, target
