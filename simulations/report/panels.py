"""Figures 9, 11 and 12, their tables, and the gallery."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from shared.page import charts, marks
from shared.page.marks import nice_scale
from shared.page.numbers import duration, interval, number, size, thousands
from shared.results import CalibrationBin, Model, Picture, Results, SiteResult
from simulations.report.disclosure import UNDER, counter, exact, pictures_allowed
from simulations.report.figures import Head, TableRow, heads, level
from simulations.report.readings import LOST, admitted, calibration_error, ordered, test_patients
from simulations.report.words import MINIMUM_COUNT, NAMES, TIMES

MOST_PANELS = 12
MOST_COLUMNS = 21
MOST_PICTURES = 60
GALLERY_MODELS: tuple[Model, ...] = ("base", "local", "shared", "personal", "centralised")


@dataclass(frozen=True)
class Panel:
    """One small multiple: a drawing with words for readers, or a reason why there is none."""

    head: Head
    drawing: Markup | None
    spoken: str
    small: str = ""
    none: str = ""


@dataclass(frozen=True)
class Course:
    """Figure 9 and Table 5."""

    definitions: Markup
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    thinned: bool
    typical: str


def shown_panels(results: Results) -> list[str]:
    """Return the sites with a panel: all, or the 12 with the most test patients, in page order."""
    names = ordered(results)
    most = sorted(names, key=lambda n: -test_patients(results.sites[n]))[:MOST_PANELS]
    return [name for name in names if name in most]


def _curve(site: SiteResult) -> dict[int, float]:
    return {p.round: p.loss for p in site.course if math.isfinite(p.loss)}


def course(results: Results, *, table: bool = True) -> Course:
    """Return the validation loss of the shared adapter by round, at every site."""
    known, lines = heads(results), {name: _curve(s) for name, s in results.sites.items()}
    last = max((r for line in lines.values() for r in line), default=0)
    names = shown_panels(results)
    values = [v for name in names for v in lines[name].values()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    scale = nice_scale(low - 0.15 * (high - low), high)  # room for the crosses at the foot
    paths = [charts.curve(lines[n], last, scale, f"c-{known[n].key}") for n in names if lines[n]]
    panels = []
    for name in names:
        if not lines[name]:
            panels.append(Panel(known[name], None, "", none=_no_course(results.sites[name])))
            continue
        gaps = [
            r for r, cell in enumerate(results.sites[name].participation, 1) if cell.state in LOST
        ]
        drawing = charts.course(
            f"c-{known[name].key}", "courses", scale, last, [r for r in gaps if r <= last]
        )
        panels.append(Panel(known[name], drawing, _course_words(known[name].name, lines[name])))
    columns, thinned = rounds_shown(0, last)
    rows = [_course_row(results, name, lines[name], columns) for name in ordered(results)]
    return Course(
        charts.curves(paths, "courses"),
        tuple(panels),
        tuple(map(str, columns)),
        tuple(rows) if table else (),
        thinned,
        _typical(lines),
    )


def _no_course(site: SiteResult) -> str:
    return f"Not measured: {site.not_measured.get('r5') or 'no validation loss recorded'}"


def _course_words(name: str, line: Mapping[int, float]) -> str:
    first, final = min(line), max(line)
    return (
        f"{name}: validation loss {number(line[first], 2)} at round {first}, "
        f"{number(line[final], 2)} at round {final}, lowest {number(min(line.values()), 2)}"
    )


def rounds_shown(first: int, last: int) -> tuple[list[int], bool]:
    """Return a table's rounds: all, or about 20 evenly spaced with the first and the last."""
    if last - first < MOST_COLUMNS:
        return list(range(first, last + 1)), False
    step = -(-(last - first) // (MOST_COLUMNS - 1))
    return sorted({*range(first, last + 1, step), last}), True


def _course_row(
    results: Results, name: str, line: Mapping[int, float], columns: list[int]
) -> TableRow:
    if not line:
        return TableRow(name, none=_no_course(results.sites[name]))
    return TableRow(name, tuple(number(line[r], 3) if r in line else "missing" for r in columns))


def _typical(lines: Mapping[str, Mapping[int, float]]) -> str:
    """Return the usual size of a step between two rounds in the second half of the run."""
    steps = [
        abs(line[r] - line[r - 1])
        for line in lines.values()
        for r in line
        if r - 1 in line and r > max(line) / 2
    ]
    return number(median(steps), 3) if len(steps) > 1 else ""


@dataclass(frozen=True)
class Calibration:
    """Figure 11 and Tables 7 and 8."""

    panels: tuple[Panel, ...]
    columns: int
    rows: tuple[TableRow, ...]
    findings: tuple[TableRow, ...]
    models: tuple[str, ...]


def calibration(results: Results) -> Calibration:
    """Return predicted against observed shares of the model in use, at every site."""
    known, show = heads(results), counter(results)
    panels = [_calibration_panel(results, known[name], name) for name in shown_panels(results)]
    rows = []
    for name in ordered(results):
        site = results.sites[name]
        cells = tuple(_bin_words(row, show(row.n)) for row in site.calibration)
        rows.append(TableRow(name, cells, "" if cells else _no_bins(results, site)))
    columns = max((len(row.cells) for row in rows), default=0)
    findings, models = _findings(results)
    return Calibration(tuple(panels), columns, tuple(rows), tuple(findings), tuple(models))


def _calibration_panel(results: Results, head: Head, name: str) -> Panel:
    site = results.sites[name]
    error = calibration_error(site)
    small = f"error {level(error)}" if error else "not measured"
    if not site.calibration:
        return Panel(head, None, "", small, _no_bins(results, site))
    bins = [(row.predicted, _Observed(row), row.n) for row in site.calibration]
    drawing = charts.calibration(bins, MINIMUM_COUNT)
    return Panel(head, drawing, f"{head.name}: calibration {small}", small)


class _Observed:
    """The observed share of a bin as an interval."""

    def __init__(self, row: CalibrationBin) -> None:
        self.value, self.low, self.high = row.observed, row.low, row.high


def _no_bins(results: Results, site: SiteResult) -> str:
    if "ece" in site.not_measured:
        return f"Not measured: {site.not_measured['ece']}"
    if not exact(results) and calibration_error(site):
        return f"Withheld: every bin rests on {UNDER} predictions"
    return "Not measured: no predictions to check"


def _bin_words(row: CalibrationBin, count: str) -> str:
    return f"{number(row.predicted, 2)}: {interval(_Observed(row), 2)}, {count}"


def _findings(results: Results) -> tuple[list[TableRow], list[str]]:
    """Return Table 8: zero-shot AUROC of each finding, with the number of positives."""
    show = counter(results)
    every = [f for s in results.sites.values() for f in s.findings]
    models = [m for m in NAMES if any(m in f.auroc for f in every)]
    rows = []
    for name in ordered(results):
        for finding in results.sites[name].findings:
            cells = [
                level(finding.auroc[m]) if m in finding.auroc else "Not measured" for m in models
            ]
            rows.append(TableRow(name, (finding.finding, show(finding.positives), *cells)))
    return rows, [NAMES[m] for m in models]


@dataclass(frozen=True)
class CostRow:
    """One site in Figure 12."""

    head: Head
    strip: Markup | None
    words: str


def cost_rows(results: Results) -> tuple[list[CostRow], Markup, list[tuple[str, str]]]:
    """Return the rows of Figure 12, its axis in seconds or minutes, and the parts in use."""
    sites, known = results.sites, heads(results)
    parts = [p for p in TIMES if any(s.seconds.get(p, 0) > 0 for s in sites.values())]
    top = max((sum(s.seconds.get(p, 0) for p in parts) for s in sites.values()), default=0)
    unit, length = ("minutes", 60) if top >= 300 else ("seconds", 1)
    scale = nice_scale(0, top / length, floor=0) if top else None
    rows = []
    for name, head in known.items():
        site, strip = sites[name], None
        if scale and site.seconds:
            shares = [
                (
                    site.seconds.get(p, 0),
                    TIMES[p][0],
                    f"{TIMES[p][1]} {duration(site.seconds.get(p, 0))}",
                )
                for p in parts
                if site.seconds.get(p, 0) > 0
            ]
            strip = charts.stack(shares, scale.high * length)
        rows.append(CostRow(head, strip, _cost_words(site)))
    axis = marks.axis(scale, "", unit) if scale else Markup("")
    return rows, axis, [TIMES[p] for p in parts]


def _cost_words(site: SiteResult) -> str:
    train = duration(site.seconds["train"]) if "train" in site.seconds else "time not recorded"
    sent = size(site.bytes_up / admitted(site)) if site.bytes_up and admitted(site) else ""
    memory = size(site.peak_memory_bytes) if site.peak_memory_bytes else "memory not recorded"
    return f"{train}; {sent or 'bytes not recorded'}; {memory}"


@dataclass(frozen=True)
class Found:
    """What one model put first: (data URI or "", match, words for readers)."""

    series: str
    name: str
    first: str
    pictures: tuple[tuple[str, bool, str], ...]


@dataclass(frozen=True)
class Query:
    """One query of the gallery."""

    text: str
    source: str
    found: tuple[Found, ...]


def gallery(results: Results, pictures: int = MOST_PICTURES) -> list[Query]:
    """Return the queries that fit into so many pictures; the worst quarter goes in first."""
    known, show, room = heads(results), counter(results), pictures
    chosen = []
    for query in sorted(results.gallery, key=lambda q: -q.quarter):
        cost = sum(len(found) for found in query.found.values())
        if cost <= room:
            room -= cost
            chosen.append(query)
    out = []
    for query in [q for q in results.gallery if q in chosen]:
        site = results.sites.get(query.site)
        choices = f", among {show(site.gallery_images)} pictures" if site else ""
        name = known[query.site].name if query.site in known else query.site
        models = [m for m in GALLERY_MODELS if m in query.first_match]
        found = tuple(
            _found(results, m, query.first_match[m], query.found.get(m, [])) for m in models
        )
        out.append(Query(query.text, f"{name}{choices}", found))
    return out


def _found(results: Results, model: Model, first: int, pictures: list[Picture]) -> Found:
    shown = tuple(
        (
            results.pictures.get(p.image, "") if pictures_allowed(results) else "",
            p.match,
            f"Picture at rank {rank}, {'a match' if p.match else 'no match'}",
        )
        for rank, p in enumerate(pictures, 1)
    )
    return Found(model, NAMES[model], f"first match at rank {thousands(first)}", shown)
