"""Figure 10 and Table 6: how hard each tower is pulled, and which one runs ahead."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import geometric_mean

from markupsafe import Markup

from shared.page import charts
from shared.page.marks import LogScale, log_scale
from shared.page.numbers import number
from shared.results import Results, Tower
from simulations.report.figures import TableRow, heads
from simulations.report.panels import Panel, rounds_shown, shown_panels
from simulations.report.readings import ordered

NAMES: dict[Tower, str] = {"image": "Image tower", "text": "Text tower"}
NOT_TRAINED = "Not measured: no round of this site is in the run"
ALIKE = 1.05  # a lead that one decimal cannot show is none

Line = Mapping[int, float]


@dataclass(frozen=True)
class Towers:
    """Figure 10 and Table 6.

    Attributes:
        lead: The image tower's lead by round at every site, and the mean of sites.
        spoken: The same in words.
        panels: Both towers' gradient norms at every site.
        columns: Rounds of the table.
        rows: Of the table.
        thinned: Whether the table leaves rounds out.
    """

    lead: Markup | None
    spoken: str
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    thinned: bool


def towers(results: Results, *, table: bool = True) -> Towers:
    """Return gradient norms of both towers by round, and how far one runs ahead of the other."""
    sites, names = results.sites, shown_panels(results)
    norms = {
        name: {t: _line(site.gradient_norms.get(t, [])) for t in NAMES}
        for name, site in sites.items()
    }
    leads = {name: _line(site.discrepancy.get("image", [])) for name, site in sites.items()}
    last = max((r for own in norms.values() for line in own.values() for r in line), default=0)
    scale = _scale(norms[name][tower] for name in names for tower in NAMES)
    known = heads(results)
    panels = []
    for name in names:
        if scale is None or not any(norms[name].values()):
            panels.append(Panel(known[name], None, "", none=NOT_TRAINED))
            continue
        drawing = charts.lines([(norms[name][t], f"t-{t}") for t in NAMES], scale, last)
        small = _lead_words(norms[name], leads[name])
        spoken = f"{known[name].name}: {small}; {_norm_words(norms[name])}"
        panels.append(Panel(known[name], drawing, spoken, small))
    columns, thinned = rounds_shown(1, last)
    rows = [_row(name, norms[name], leads[name], columns) for name in ordered(results)]
    return Towers(
        *_lead(leads, names, last),
        tuple(panels),
        tuple(map(str, columns)),
        tuple(rows) if table else (),
        thinned,
    )


def _line(values: list[float]) -> dict[int, float]:
    """Return values by round from 1; 0 stands for a round that did not train the tower."""
    return {r: value for r, value in enumerate(values, 1) if value > 0 and math.isfinite(value)}


def _scale(lines: Iterable[Line]) -> LogScale | None:
    values = [value for line in lines for value in line.values()]
    return log_scale(min(values), max(values)) if values else None


def mean_lead(leads: Mapping[str, Line]) -> dict[int, float]:
    """Return the geometric mean of sites by round, so that twice and half cancel out."""
    rounds = sorted({r for line in leads.values() for r in line})
    return {r: geometric_mean(line[r] for line in leads.values() if r in line) for r in rounds}


def _lead(leads: Mapping[str, Line], shown: list[str], last: int) -> tuple[Markup | None, str]:
    mean = mean_lead(leads)
    scale = _scale([*(leads[name] for name in shown), mean, {0: 1.0}])
    if not mean or scale is None:
        return None, "No site trained both towers, so neither can run ahead"
    curves = [(leads[name], "t-site") for name in shown] + [(mean, "t-mean")]
    first, final = (f"{ahead(mean[r])} in round {r}" for r in (min(mean), max(mean)))
    return charts.lines(curves, scale, last, level=1), f"Mean of sites: {first}, {final}"


def ahead(ratio: float) -> str:
    """Return which tower runs ahead and how far: ``image 2.4 times text``."""
    if max(ratio, 1 / ratio) < ALIKE:
        return "both towers alike"
    leader, other = ("image", "text") if ratio > 1 else ("text", "image")
    return f"{leader} {number(max(ratio, 1 / ratio), 1)} times {other}"


def _lead_words(norms: Mapping[Tower, Line], lead: Line) -> str:
    if lead:
        return ahead(geometric_mean(lead.values()))
    return " and ".join(NAMES[t] for t in NAMES if norms[t]).lower() + " only"


def _norm_words(norms: Mapping[Tower, Line]) -> str:
    return ", ".join(
        f"{NAMES[t].lower()} {_norm(line[min(line)])} in round {min(line)} and "
        f"{_norm(line[max(line)])} in round {max(line)}"
        for t, line in norms.items()
        if line
    )


def _norm(value: float) -> str:
    return f"{value:.3g}"


def _row(name: str, norms: Mapping[Tower, Line], lead: Line, columns: list[int]) -> TableRow:
    """Return one site of the table: both norms of a round, and their ratio."""
    if not any(norms.values()):
        return TableRow(name, none=NOT_TRAINED)
    cells = []
    for r in columns:
        parts = [_norm(line[r]) for line in norms.values() if r in line]
        ratio = f" ({_norm(lead[r])})" if r in lead else ""
        cells.append(" / ".join(parts) + ratio if parts else "missing")
    small = _lead_words(norms, lead)
    return TableRow(name, (small[0].upper() + small[1:], *cells))
