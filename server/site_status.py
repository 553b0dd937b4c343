"""What a run's events tell of its sites: who is online, who is awaited until when, who is out."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from server.forecast import Forecast

Event = Mapping[str, Any]
"""One line of ``events.jsonl``; see ``server.events``."""

_AWAITED = ("awaited", "working")
_WORDS = {"loss-not-finite": "diverged", "change-not-finite": "diverged"}
"""What people call some reasons."""


@dataclass
class SiteStatus:
    """What is known of one site in a run.

    Attributes:
        name: Its name.
        state: ``connected``, ``awaited``, ``working``, ``in``, or how it was left out of the round.
        reason: Code, if it was left out.
        about: What belongs to the reason: all fields that its policy forbids, or both versions.
        online: Whether it is connected; ``None`` if nobody looks.
        since: From when on it is connected or not, ISO 8601.
        heard: When it was last heard of, ISO 8601.
        progress: Share of its work that it has done, as far as it says so.
        finish: When it will have answered by its forecast, ISO 8601.
        contributed: Committed rounds that its change is in.
        left_out: Committed rounds that asked it in vain.
    """

    name: str
    state: str = "connected"
    reason: str | None = None
    about: list[str] = field(default_factory=list)
    online: bool | None = None
    since: str | None = None
    heard: str | None = None
    progress: float | None = None
    finish: str | None = None
    contributed: int = 0
    left_out: int = 0


@dataclass
class Course:
    """What a run's events tell.

    Attributes:
        forecasts: How long sites take in a round, by what is committed.
        phase: What is under way: ``round 3``, ``personalize``, ``evaluate``.
        waiting: How many sites are there and how many are needed, while that is waited for.
        sites: Those that described themselves or were left out, by name.
    """

    forecasts: Mapping[str, Forecast]
    phase: str | None = None
    waiting: tuple[int, int] | None = None
    sites: dict[str, SiteStatus] = field(default_factory=dict)

    def follow(self, events: Iterable[Event]) -> None:
        """Take events into account, in order."""
        steps: Mapping[str, Callable[[Event], None]] = {
            "run-started": self._begun,
            "run-resumed": self._begun,
            "waiting": self._waits,
            "round-started": self._round_started,
            "phase-started": self._phase_started,
            "run-finished": self._finished,
        }
        for event in events:
            kind = str(event.get("kind"))
            if kind in steps:
                steps[kind](event)
            name = event.get("site")
            if name is not None and (name in self.sites or kind != "site-working"):
                site = self.sites.setdefault(str(name), SiteStatus(str(name)))
                _note(site, kind, event)

    def _begun(self, _: Event) -> None:
        for site in self.sites.values():
            site.online = site.since = None

    def _waits(self, event: Event) -> None:
        self.waiting = int(event["present"]), int(event["needed"])

    def _round_started(self, event: Event) -> None:
        self.phase, self.waiting = f"round {event['round']}", None
        for name in event.get("cohort", []):
            site = self.sites.setdefault(name, SiteStatus(name))
            self._await(site)
            forecast = self.forecasts.get(name)
            site.finish = _later(event, forecast.seconds) if forecast else None

    def _phase_started(self, event: Event) -> None:
        self.phase, self.waiting = str(event["phase"]), None
        for site in self.sites.values():
            self._await(site)

    def _await(self, site: SiteStatus) -> None:
        site.state, site.reason, site.about = "awaited", None, []
        site.progress = site.finish = None

    def _finished(self, _: Event) -> None:
        self.phase = self.waiting = None
        self._begun({})


def _note(site: SiteStatus, kind: str, event: Event) -> None:
    """Note an event of one site."""
    time = str(event.get("time"))
    if kind in ("site-connected", "site-disconnected"):
        site.online, site.since = kind == "site-connected", time
        return
    if kind == "site-dropped":
        reason = str(event.get("reason"))
        site.state, site.reason = str(event.get("state")), _WORDS.get(reason, reason)
        site.about = [str(each) for each in event.get("about") or []]
    elif kind == "site-working":
        site.state, site.progress = "working", event.get("progress")
        if event.get("left") is not None:
            site.finish = _later(event, float(event["left"]))
    elif kind in ("site-replied", "phase-progress"):
        site.state, site.reason, site.finish = "in", None, None
    elif kind == "site-described":
        site.state = site.state if site.state in _AWAITED else "connected"
        site.online, site.since, site.reason, site.about = True, time, None, []
    if site.state not in _AWAITED:
        site.progress = site.finish = None
    if kind != "site-dropped" or site.state == "refused":
        site.heard = time  # one that is dropped for its silence was not heard of


def _later(event: Event, seconds: float) -> str | None:
    """Return the time so many seconds after an event."""
    try:
        moment = datetime.fromisoformat(str(event["time"])) + timedelta(seconds=seconds)
    except (KeyError, ValueError, OverflowError):
        return None
    return moment.isoformat(timespec="seconds")


def read_events(run: Path) -> list[Event]:
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
