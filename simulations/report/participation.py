"""Who took part: rounds, what went wrong and what was done."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from shared.page import charts
from shared.page.marks import CELL_WORDS
from shared.page.numbers import nice_step, ranges, short
from shared.results import ParticipationCell, ParticipationState, Results
from simulations.report.readings import (
    LOST,
    admitted,
    asked,
    ordered,
)
from simulations.report.stories import extras

MOST_MARKS = 40
# Worst first: the worst state of a bin is the one that is drawn.
WORST: tuple[ParticipationState, ...] = ("missing", "refused", "late", "in", "idle")
DONE: dict[ParticipationState, str] = {
    "late": "Waited for; contribution used",
    "missing": "Round closed without it",
    "refused": "Update discarded; round closed without it",
    "idle": "Asked later",
    "in": "Contribution used",
}


@dataclass(frozen=True)
class RoundsRow:
    """One site in Figure 5."""

    site: str
    strip: Markup
    words: str
    total: str


@dataclass(frozen=True)
class Event:
    """One line of Table 3."""

    site: str
    rounds: str
    what: str
    done: str


def bins(count: int) -> list[range]:
    """Return the rounds (from 0) of each mark: one each, or at most 40 equal bins."""
    step = max(1, -(-count // MOST_MARKS))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def rounds_rows(results: Results) -> list[RoundsRow]:
    """Return the rows of Figure 5, one mark per round or per bin of rounds."""
    count = max((len(s.participation) for s in results.sites.values()), default=0)
    rows = []
    for name in ordered(results):
        site = results.sites[name]
        cells = list(site.participation)
        cells += [ParticipationCell(state="idle")] * (count - len(cells))
        marks = [_mark(name, cells, part) for part in bins(count)]
        total = f"{admitted(site)} of {asked(site)}" if asked(site) else "not asked"
        more = extras(site)
        rows.append(
            RoundsRow(
                name,
                charts.rounds(marks),
                _sentence(cells),
                total + (f"; {', '.join(more)}" if more else ""),
            )
        )
    return rows


def _mark(name: str, cells: Sequence[ParticipationCell], part: range) -> tuple[str, str]:
    """Return the worst state of some rounds and, unless all is well, words for a pointer."""
    states = [cells[r].state for r in part]
    worst = next(state for state in WORST if state in states)
    if worst in ("in", "idle"):
        return worst, ""
    if len(part) == 1:
        cell = cells[part[0]]
        reason = f" ({reason_words(cell.reason)})" if cell.reason else ""
        return worst, f"{short(name)}, round {part[0] + 1}: {CELL_WORDS[worst]}{reason}"
    counts = [f"{states.count(s)} {CELL_WORDS[s]}" for s in WORST if s in states]
    return worst, f"{short(name)}, rounds {part[0] + 1} to {part[-1] + 1}: {', '.join(counts)}"


def _sentence(cells: Sequence[ParticipationCell]) -> str:
    """Return the row in words, for readers that cannot see it."""
    at = {s: [r for r, cell in enumerate(cells, 1) if cell.state == s] for s in WORST}
    parts = [
        f"{CELL_WORDS[state]} in round{'s' if len(rounds) > 1 else ''} {ranges(rounds)}"
        for state, rounds in at.items()
        if rounds and state != "in"
    ]
    if at["in"]:
        parts.append("contributed in all others" if parts else "contributed in every round")
    return "; ".join(parts)


def rounds_axis(results: Results) -> Markup:
    """Return the axis above Figure 5, with a bar before each round that was resumed."""
    count = max((len(s.participation) for s in results.sites.values()), default=1) or 1
    parts = bins(count)
    step = max(1, round(nice_step(len(parts), 5)))
    chosen = [0, *range(step - 1, len(parts), step)]
    labels = {(k + 0.5) / len(parts): str(parts[k][-1] + 1 if k else 1) for k in chosen}
    bars: dict[float, str] = {}
    for r in results.resumed_rounds:
        bars[min(1.0, (r - 1) / count)] = "" if bars else "resumed here"
    return charts.rounds_axis(labels, bars)


def reason_words(reason: str | None) -> str:
    """Return a reason code as words."""
    return reason.replace("_", " ").replace("-", " ") if reason else "no reason recorded"


def events(results: Results) -> list[Event]:
    """Return everything that was late, missing or refused, and every resumption."""
    found: list[Event] = []
    for name in ordered(results):
        groups: dict[tuple[ParticipationState, str | None, str | None], list[int]] = {}
        for r, cell in enumerate(results.sites[name].participation, 1):
            if cell.state in ("late", *LOST) or (cell.state == "idle" and cell.reason):
                groups.setdefault((cell.state, cell.reason, cell.done), []).append(r)
        for (state, reason, done), rounds in groups.items():
            what = f"{CELL_WORDS[state].capitalize()}: {reason_words(reason)}"
            found.append(Event(name, ranges(rounds), what, done or DONE[state]))
    for r in results.resumed_rounds:
        was = f"Resumed from round {r - 1} as committed" if r > 1 else "Started again from the base"
        found.append(Event("Coordinator", str(r), "Run interrupted", was))
    return found
