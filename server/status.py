"""``consilia server status``: what is under way, who is awaited, who was left out and why.

Everything is read from the run history and from the runs' events; nothing is asked of a site.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.checkpoint import RunStore
from server.forecast import forecasts
from server.history import RunHistory
from server.home import CoordinatorHome
from server.records import RoundRecord, RunSummary
from server.run_files import is_locked
from server.site_status import Course, SiteStatus, read_events
from server.vehicle import read_vehicle
from shared.errors import InputError, RunDirectoryError
from shared.page.numbers import duration

_WAITING = "waiting for its ServerApp"
_WATCH_SECONDS = 2.0
_TELLING = 20
"""So many rounds tell how long a site takes."""


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
        waiting: ``1 of 2 sites`` while too few are there to go on.
        sites: Those that described themselves or were left out.
        seconds_left: Forecast from the committed rounds; ``None`` if nothing is known.
        alive: Whether a ServerApp works on it at this moment.
        adapter_sha256: Of the last committed round.
        secure_aggregation: Whether the coordinator gets sums over the sites' changes only.
    """

    name: str
    status: str
    reason: str | None
    rounds: int
    rounds_planned: int
    phase: str | None = None
    waiting: str | None = None
    sites: list[SiteStatus] = field(default_factory=list)
    seconds_left: float | None = None
    alive: bool = False
    adapter_sha256: str | None = None
    secure_aggregation: bool = False


def status_command(
    home: CoordinatorHome, run: str | None, console: Console, *, as_json: bool, watch: bool = False
) -> None:
    """Print the runs of a coordinator, or one of them in full.

    Args:
        home: The coordinator's folder.
        run: A run; all of them, the latest in full, if not given.
        console: Where.
        as_json: Print one JSON object.
        watch: Show it anew every few seconds, until Ctrl-C.

    Raises:
        RunDirectoryError: If there is no such run.
    """
    if as_json:
        tree = {
            "coordinator": "up" if home.answers() else "down",
            "runs": [asdict(each) for each in _runs_now(home, run)],
        }
        console.print_json(json.dumps(tree))
    elif watch:
        _watch(home, run, console)
    else:
        console.print(_page(home, run))


def _watch(home: CoordinatorHome, run: str | None, console: Console) -> None:
    """Show the page anew every few seconds, until Ctrl-C."""
    with Live(_page(home, run), console=console, auto_refresh=False, screen=False) as live:
        try:
            while True:
                time.sleep(_WATCH_SECONDS)
                live.update(_page(home, run), refresh=True)
        except KeyboardInterrupt:
            return


def _page(home: CoordinatorHome, run: str | None) -> RenderableType:
    """Return everything that is shown."""
    shown = _runs_now(home, run)
    parts: list[RenderableType] = [
        Text(f"coordinator {'up' if home.answers() else 'down'}, {home.folder}")
    ]
    if not shown:
        parts.append(Text(f"no runs; consilia server submit JOB.toml --home {home.folder}"))
    for number, each in enumerate(shown):
        parts += _about(each, whole=number == 0)
    return Group(*parts)


def _runs_now(home: CoordinatorHome, run: str | None) -> list[RunStatusNow]:
    names = [home.run_path(run).name] if run else _runs(home)
    known = _known(home)
    return [run_status(home, name, known.get(name)) for name in names]


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
            now = RunStatusNow(name, "submitted", _WAITING, 0, store.job.rounds, alive=alive)
            now.secure_aggregation = store.job.privacy.secure_aggregation
            return now
    status, reason = summary.status, summary.reason
    if status == "running" and not alive:
        vehicle = read_vehicle(path)
        wanted = vehicle is not None and vehicle.wanted
        reason = f"its ServerApp is gone; {'it is started again' if wanted else 'not wanted'}"
    now = RunStatusNow(name, status, reason, summary.rounds, summary.rounds_planned, alive=alive)
    now.secure_aggregation = _on_sums(path)
    with RunHistory(home.history_url) as history:
        rounds = history.committed_rounds(name)
    examples = {each.site: each.examples for record in rounds for each in record.contributions}
    course = Course(forecasts(rounds[-_TELLING:], examples))
    course.follow(read_events(path))
    now.phase = course.phase
    if course.waiting is not None:
        now.waiting = "{} of {} sites".format(*course.waiting)
    _count(course.sites, rounds)
    now.sites = [course.sites[site] for site in sorted(course.sites)]
    if not alive:
        for site in now.sites:  # nobody looks who is connected
            site.online = site.since = site.finish = None
    if rounds:
        now.adapter_sha256 = rounds[-1].adapter_sha256
        mean = sum(record.seconds for record in rounds) / len(rounds)
        if status == "running":
            now.seconds_left = mean * (now.rounds_planned - now.rounds)
    return now


def _on_sums(path: Path) -> bool:
    """Return whether a run's job has secure aggregation; not of one whose folder is damaged."""
    with suppress(InputError), RunStore.open(path, lock=False) as store:
        return store.job.privacy.secure_aggregation
    return False


def _count(sites: dict[str, SiteStatus], rounds: Sequence[RoundRecord]) -> None:
    """Count the committed rounds that every site is in, and those that asked it in vain."""
    for record in rounds:
        for each in record.contributions:
            site = sites.setdefault(each.site, SiteStatus(each.site, "away"))
            site.contributed += each.state == "in"
            site.left_out += each.lost


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


def _about(run: RunStatusNow, *, whole: bool) -> Iterator[RenderableType]:
    """Yield what is shown of a run; ``whole`` with its sites."""
    parts = [f"{run.name}: {run.status}", f"{run.rounds} of {run.rounds_planned} rounds"]
    if run.status == "running" and run.phase:
        parts.append(run.phase)
    if run.status == "running" and run.waiting:
        parts.append(f"waiting: {run.waiting}")
    if run.seconds_left is not None:
        parts.append(f"about {duration(run.seconds_left)} left")
    if run.secure_aggregation:
        parts.append("secure aggregation")
    if run.adapter_sha256:
        parts.append(f"adapter {run.adapter_sha256[:12]}")
    yield Text(", ".join(parts))
    if run.reason:
        yield Text(run.reason)
    if whole and run.sites:
        yield _table(run.sites)
        for site in run.sites:
            yield from (Text(f"{site.name}: {line}") for line in site.about)


def _table(sites: Sequence[SiteStatus]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in ("site", "online", "now", "why", "left", "rounds", "left out", "heard"):
        table.add_column(name, no_wrap=name != "why")
    for site in sites:
        done = "" if site.progress is None else f" {site.progress:.0%}"
        table.add_row(
            site.name,
            _online(site),
            site.state + done,
            site.reason or "",
            "" if site.finish is None else duration(max(0.0, -_seconds_since(site.finish))),
            str(site.contributed),
            str(site.left_out or ""),
            "" if site.heard is None else f"{duration(max(0.0, _seconds_since(site.heard)))} ago",
        )
    return table


def _online(site: SiteStatus) -> str:
    if site.online is None or site.since is None:
        return ""
    return f"{'yes' if site.online else 'no'}, {duration(max(0.0, _seconds_since(site.since)))}"


def _seconds_since(stamp: str) -> float:
    return time.time() - datetime.fromisoformat(stamp).astimezone(UTC).timestamp()
