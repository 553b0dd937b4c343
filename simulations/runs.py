"""``consilia runs``: what this machine has run, from the run history."""

import dataclasses
import json
from collections.abc import Container
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from server.checkpoint import RunStore
from server.history import RunHistory
from server.records import RoundRecord, RunSummary
from server.run_files import is_locked
from shared.errors import RunDirectoryError
from shared.page.numbers import duration, size
from simulations.histories import open_history


def list_runs(out: Path, console: Console, *, as_json: bool) -> None:
    """Print all runs of a folder, the latest first.

    Raises:
        RunDirectoryError: If the folder has no history.
    """
    with _history(out) as history:
        runs = [_present(out, run) for run in history.runs()]
    runs = _not_begun(out, {run.name for run in runs}) + runs
    if as_json:
        console.print_json(json.dumps([_tree(run) for run in runs], default=str))
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("run", "status", "rounds", "started"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        table.add_row(
            run.name,
            run.status,
            f"{run.rounds} of {run.rounds_planned}",
            f"{run.started:%Y-%m-%d %H:%M}",
            run.reason or "",
        )
    console.print(table)
    console.print(f"Next: consilia runs show RUN --out {out}", highlight=False)


def show_run(out: Path, name: str, console: Console, *, as_json: bool) -> None:
    """Print one run, round by round: who contributed, who was dropped and why.

    Raises:
        InputError: If there is no such run.
    """
    with _history(out) as history:
        run, rounds = _present(out, history.run(name)), history.committed_rounds(name)
        trail = history.audit_trail(name)
    if as_json:
        tree = {**_tree(run), "committed": [_tree(r) for r in rounds]}
        console.print_json(json.dumps(tree, default=str))
        return
    console.print(f"{run.name}: {run.status}, {run.rounds} of {run.rounds_planned} rounds")
    if run.reason:
        console.print(run.reason, highlight=False, soft_wrap=True)
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
    history = open_history(out)
    if history is None:
        raise RunDirectoryError(f"{out}: no runs here; start one with: consilia simulate")
    return history


def _present(out: Path, run: RunSummary) -> RunSummary:
    """Tell a run that is under way from one whose process was killed before it could say so."""
    if run.status != "running" or is_locked(out / run.name) is not False:
        return run
    return dataclasses.replace(
        run, status="stopped", reason=f"its process ended; go on with --resume {out / run.name}"
    )


def _not_begun(out: Path, known: Container[str]) -> list[RunSummary]:
    """Return the runs that ended before the federation began, of which no history knows."""
    found = []
    for manifest in sorted(out.glob("*/manifest.json")):
        if manifest.parent.name in known:
            continue
        with suppress(RunDirectoryError), RunStore.open(manifest.parent, lock=False) as store:
            run = RunSummary(
                name=store.run,
                status="running",
                reason=None,
                started=datetime.fromisoformat(str(store.manifest["created"])),
                finished=None,
                rounds=0,
                rounds_planned=store.job.rounds,
                job_sha256=store.job.digest(),
                base_sha256=store.base_sha256,
                seed=store.job.seed,
            )
            found.append(_present(out, run))
    return found
