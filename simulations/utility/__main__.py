"""``python -m simulations.utility``: what privacy costs, as a table.

Cells that are there are not trained again, so that the same command goes on after it was stopped;
``--seconds`` stops it by itself, with exit code 3 while anything is missing.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from shared.errors import ConsiliaError
from shared.marked_page import MarkedPage
from simulations.utility.cells import MEASURES, Laboratory, Score, kept
from simulations.utility.plan import Cell, Plan, Reference, Row, best_rate, make_plan, tuned_as
from simulations.utility.table import PAGE, Key, markdown

JOB: Final = Path(__file__).parents[1] / "jobs" / "privacy.toml"
_COMMAND: Final = "python -m simulations.utility"


class OutOfTimeError(Exception):
    """The seconds that were given are over; what is done is kept."""


def carry_out(
    laboratory: Laboratory, cells: Sequence[Cell], until: float, console: Console
) -> dict[Cell, Score]:
    """Train the cells that are missing; return the scores of all.

    Args:
        laboratory: Trains them.
        cells: In the order in which they are trained.
        until: ``time.monotonic()`` from which on no further cell is begun.
        console: Where progress is shown.

    Raises:
        OutOfTimeError: If some are still missing then.
    """
    found = {cell: score for cell in cells if (score := kept(laboratory.plan, cell)) is not None}
    missing = [cell for cell in cells if cell not in found]
    for number, cell in enumerate(missing):
        if time.monotonic() > until:
            raise OutOfTimeError(f"{len(missing) - number} of {len(cells)} cells are missing")
        score = laboratory.carry_out(cell)
        found[cell] = score
        level = score.mean(MEASURES[0])
        console.print(
            f"{len(found)}/{len(cells)} {cell.name}: "
            f"{'diverged' if level is None else f'{MEASURES[0]} {level:.3f}'}, {score.seconds:g} s",
            highlight=False,
        )
    return found


def chosen_rates(
    plan: Plan, tried: dict[Cell, Score]
) -> dict[tuple[Row | Reference, float], float]:
    """Return the rates that were chosen; the job's where every rate diverged."""
    rates: dict[tuple[Row | Reference, float], float] = {}
    for row, epsilon in plan.columns():
        if row == "base" or tuned_as(row, epsilon) != (row, epsilon):
            continue
        levels = [
            (cell.rate, level)
            for cell, score in tried.items()
            if (cell.row, cell.epsilon) == (row, epsilon)
            and (level := score.mean(MEASURES[0])) is not None
        ]
        rates[row, epsilon] = best_rate(levels) if levels else plan.job.train.learning_rate
    return rates


def make_table(plan: Plan, seconds: float, console: Console) -> str:
    """Return the table, once every cell is there.

    Raises:
        OutOfTimeError: If some are missing when the seconds are over.
    """
    until, laboratory = time.monotonic() + seconds, Laboratory(plan)
    rates = chosen_rates(plan, carry_out(laboratory, plan.tuning(), until, console))
    scores = carry_out(laboratory, plan.compared(rates), until, console)
    by_key: dict[Key, Score] = {(c.row, c.epsilon, c.seed): s for c, s in scores.items()}
    command = f"{_COMMAND} --out runs/utility --seeds {len(plan.seeds)} --write docs/privacy.md"
    return markdown(plan, by_key, rates, command)


def main(arguments: Iterable[str] | None = None) -> int:
    """Make the table; return the exit code: 0 done, 2 bad input, 3 cells are missing."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="What privacy costs, as a table.")
    parser.add_argument("--job", type=Path, default=JOB, help="job file with [privacy]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/utility"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no cell after them")
    parser.add_argument("--write", type=Path, help="page to put the table into")
    given = parser.parse_args(None if arguments is None else list(arguments))
    console = Console(stderr=True)
    torch.set_num_threads(1)
    try:
        page = None if given.write is None else MarkedPage.open(given.write, PAGE)
        plan = make_plan(given.job, given.seeds, given.out)
        content = make_table(plan, given.seconds, console)
        if page is None:
            sys.stdout.write(content)
        else:
            page.write(content)
    except OutOfTimeError as stopped:
        console.print(f"{stopped}; the same command goes on", highlight=False)
        return 3
    except ConsiliaError as error:
        console.print(str(error), highlight=False, markup=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
