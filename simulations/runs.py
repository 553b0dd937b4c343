"""``consilia runs``: what this machine has run, from the run history."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from server.history import RunHistory
from server.records import RoundRecord, RunSummary
from shared.errors import RunDirectoryError
from shared.page.numbers import duration, size
from simulations.simulate import history_url


def list_runs(out: Path, console: Console, *, as_json: bool) -> None:
    """Print all runs of a folder, the latest first.

    Raises:
        RunDirectoryError: If the folder has no history.
    """
    with _history(out) as history:
        runs = history.runs()
    if as_json:
        console.print_json(json.dumps([_tree(run) for run in runs], default=str))
        return
    table = Table("run", "status", "rounds", "started", "without")
    for run in runs:
        table.add_row(
            run.name, run.status, f"{run.rounds} of {run.rounds_planned}", str(run.started), ""
        )
    console.print(table)
    console.print(f"Next: consilia runs show RUN --out {out}", highlight=False)


def show_run(out: Path, name: str, console: Console, *, as_json: bool) -> None:
    """Print one run, round by round: who contributed, who was dropped and why.

    Raises:
        InputError: If there is no such run.
    """
    with _history(out) as history:
        run, rounds = history.run(name), history.committed_rounds(name)
        trail = history.audit_trail(name)
    if as_json:
        tree = {**_tree(run), "committed": [_tree(r) for r in rounds]}
        console.print_json(json.dumps(tree, default=str))
        return
    console.print(f"{run.name}: {run.status}, {run.rounds} of {run.rounds_planned} rounds")
    table = Table("round", "sites", "without", "loss", "time", "up", "down")
    for record in rounds:
        table.add_row(*_row(record))
    console.print(table)
    for entry in trail:
        console.print(f"{entry.at} {entry.action} {entry.detail}", highlight=False)


def _row(record: RoundRecord) -> tuple[str, ...]:
    lost = [f"{c.site} ({c.reason or c.state})" for c in record.contributions if c.lost]
    losses = [c.loss for c in record.contributions if c.loss is not None]
    mean = f"{sum(losses) / len(losses):.3f}" if losses else ""
    return (
        str(record.round),
        f"{record.contributors} of {record.asked}",
        ", ".join(lost),
        mean,
        duration(record.seconds),
        size(record.bytes_up),
        size(record.bytes_down),
    )


def _tree(record: RunSummary | RoundRecord) -> dict[str, object]:
    return dataclasses.asdict(record)


def _history(out: Path) -> RunHistory:
    url = history_url(out / "run")
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise RunDirectoryError(f"{out}: no runs here; start one with: consilia simulate")
    return RunHistory(url)
