"""``consilia server status``: what is under way, who is awaited, who was left out and why.

Everything is read from the run history and from the runs' events; nothing is asked of a site.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from server.checkpoint import RunStore
from server.history import RunHistory
from server.home import CoordinatorHome
from server.records import RunSummary
from server.run_files import is_locked
from server.vehicle import read_vehicle
from shared.errors import RunDirectoryError
from shared.page.numbers import duration

_WAITING = "waiting for its ServerApp"


@dataclass
class SiteStatus:
    """What is known of one site in a run.

    Attributes:
        name: Its name.
        state: ``awaited``, ``working``, ``in``, or how it was left out of the round.
        reason: Code, if it was left out.
        heard: When it was last heard of, ISO 8601.
        contributed: Committed rounds that its change is in.
    """

    name: str
    state: str = "connected"
    reason: str | None = None
    heard: str | None = None
    contributed: int = 0


@dataclass
class RunStatusNow:
    """What is known of one run.

    Attributes:
        name: The run.
        status: As in the history; ``submitted`` before its first moment.
        reason: Why it ended, if it did.
        rounds: Committed.
        rounds_planned: Of the job.
        phase: What is under way: ``round 3``, ``personalize``, ``evaluate``.
        sites: Those that described themselves or were left out.
        seconds_left: Forecast from the committed rounds; ``None`` if nothing is known.
        alive: Whether a ServerApp works on it at this moment.
        adapter_sha256: Of the last committed round.
    """

    name: str
    status: str
    reason: str | None
    rounds: int
    rounds_planned: int
    phase: str | None = None
    sites: list[SiteStatus] = field(default_factory=list)
    seconds_left: float | None = None
    alive: bool = False
    adapter_sha256: str | None = None


def status_command(
    home: CoordinatorHome, run: str | None, console: Console, *, as_json: bool
) -> None:
    """Print the runs of a coordinator, or one of them in full.

    Args:
        home: The coordinator's folder.
        run: A run; all of them, the latest in full, if not given.
        console: Where.
        as_json: Print one JSON object.

    Raises:
        RunDirectoryError: If there is no such run.
    """
    names = [home.run_path(run).name] if run else _runs(home)
    known = _known(home)
    shown = [run_status(home, name, known.get(name)) for name in names]
    answers = home.answers()
    if as_json:
        tree = {"coordinator": "up" if answers else "down", "runs": [asdict(r) for r in shown]}
        console.print_json(json.dumps(tree))
        return
    console.print(f"coordinator {'up' if answers else 'down'}, {home.folder}", highlight=False)
    if not shown:
        console.print(f"no runs; consilia server submit JOB.toml --home {home.folder}")
    for number, each in enumerate(shown):
        _print(each, console, whole=number == 0)


def run_status(home: CoordinatorHome, name: str, summary: RunSummary | None) -> RunStatusNow:
    """Return what is known of a run.

    Args:
        home: The coordinator's folder.
        name: The run.
        summary: Its line in the history, if it has one.
    """
    path = home.runs / name
    alive = is_locked(path) is True
    if summary is None:
        with RunStore.open(path, lock=False) as store:
            return RunStatusNow(name, "submitted", _WAITING, 0, store.job.rounds, alive=alive)
    status, reason = summary.status, summary.reason
    if status == "running" and not alive:
        vehicle = read_vehicle(path)
        wanted = vehicle is not None and vehicle.wanted
        reason = f"its ServerApp is gone; {'it is started again' if wanted else 'not wanted'}"
    now = RunStatusNow(name, status, reason, summary.rounds, summary.rounds_planned, alive=alive)
    contributed: dict[str, int] = {}
    with RunHistory(home.history_url) as history:
        rounds = history.committed_rounds(name)
    for record in rounds:
        for each in record.contributions:
            contributed[each.site] = contributed.get(each.site, 0) + (each.state == "in")
    sites = _sites(path, now)
    for site, count in contributed.items():
        sites.setdefault(site, SiteStatus(site, "away")).contributed = count
    now.sites = [sites[site] for site in sorted(sites)]
    if rounds:
        now.adapter_sha256 = rounds[-1].adapter_sha256
        mean = sum(record.seconds for record in rounds) / len(rounds)
        if status == "running":
            now.seconds_left = mean * (now.rounds_planned - now.rounds)
    return now


def _sites(run: Path, now: RunStatusNow) -> dict[str, SiteStatus]:
    """Read from the events what every site does; note the phase on the way."""
    sites: dict[str, SiteStatus] = {}
    for event in _events(run):
        kind, name = event.get("kind"), event.get("site")
        if kind == "round-started":
            now.phase = f"round {event['round']}"
            for site in event.get("cohort", []):
                sites.setdefault(site, SiteStatus(site)).state = "awaited"
                sites[site].reason = None
        elif kind == "phase-started":
            now.phase = str(event["phase"])
            for status in sites.values():
                status.state, status.reason = "awaited", None
        elif kind in ("run-finished", "round-committed"):
            now.phase = None if kind == "run-finished" else now.phase
        if name is not None and (name in sites or kind != "site-working"):
            site = sites.setdefault(str(name), SiteStatus(str(name)))
            site.heard = str(event.get("time"))
            _note(site, event)
    return sites


def _note(site: SiteStatus, event: Mapping[str, Any]) -> None:
    states = {
        "site-working": "working",
        "site-replied": "in",
        "phase-progress": "in",
        "site-described": site.state if site.state == "awaited" else "connected",
    }
    kind = str(event["kind"])
    if kind == "site-dropped":
        site.state, site.reason = str(event.get("state")), str(event.get("reason"))
    elif kind in states:
        site.state, site.reason = states[kind], None


def _events(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run; a last line that is just being written is left out."""
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def _runs(home: CoordinatorHome) -> list[str]:
    """Return the names of the runs, the latest first."""
    manifests = home.runs.glob("*/manifest.json")
    return [p.parent.name for p in sorted(manifests, key=lambda p: -p.stat().st_mtime)]


def _known(home: CoordinatorHome) -> dict[str, RunSummary]:
    if not home.runs.exists():
        raise RunDirectoryError(
            f"{home.folder}: no coordinator's folder; start one with: consilia server start "
            f"--home {home.folder}"
        )
    with RunHistory(home.history_url) as history:
        return {run.name: run for run in history.runs()}


def _print(run: RunStatusNow, console: Console, *, whole: bool) -> None:
    parts = [f"{run.name}: {run.status}", f"{run.rounds} of {run.rounds_planned} rounds"]
    if run.status == "running" and run.phase:
        parts.append(run.phase)
    if run.seconds_left is not None:
        parts.append(f"about {duration(run.seconds_left)} left")
    if run.adapter_sha256:
        parts.append(f"adapter {run.adapter_sha256[:12]}")
    console.print(", ".join(parts), highlight=False)
    if run.reason:
        console.print(run.reason, highlight=False, soft_wrap=True)
    if not whole or not run.sites:
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("site", "now", "why", "rounds", "heard"):
        table.add_column(name, no_wrap=True)
    for site in run.sites:
        heard = _ago(site.heard)
        table.add_row(site.name, site.state, site.reason or "", str(site.contributed), heard)
    console.print(table)


def _ago(stamp: str | None) -> str:
    if stamp is None:
        return ""
    seconds = time.time() - datetime.fromisoformat(stamp).astimezone(UTC).timestamp()
    return f"{duration(max(0.0, seconds))} ago"
