"""``comparison.html``: one page without a single request, from ``comparison.json`` alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.metrics import METRICS
from shared.page import assets, charts, marks
from shared.page.assets import FOLDER
from shared.page.marks import Scale, nice_scale
from shared.page.numbers import moment, number, plural, true_minus
from shared.results import Estimate
from simulations.compare.model import MEASURES, Cell, Measure, MethodComparison, Row
from simulations.compare.text import made_by
from simulations.compare.words import DASH, chosen_by, heading, row_name, shown, shown_difference

CONTENTS = (
    ("answer", "The answer"),
    ("others", "Beyond the own site"),
    ("numbers", "All numbers"),
    ("rates", "Learning rates"),
    ("record", "Record"),
)
_MARK = 0.45
"""Size of a mark; it carries no precision here, the interval does."""


@dataclass(frozen=True)
class Strip:
    """One number of a row: drawing, number, interval and word, or a sentence."""

    drawing: Markup | None
    numbers: str
    word: str = ""


@dataclass(frozen=True)
class Line:
    """One row of a figure."""

    name: str
    what: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Figure:
    """Rows with two columns of drawings, and the axes below."""

    labels: tuple[str, str]
    lines: tuple[Line, ...]
    axes: tuple[Markup, Markup]


def render(comparison: MethodComparison) -> str:
    """Return the page; the same input gives the same bytes."""
    main = METRICS[comparison.main_metric]
    return (
        _environment()
        .get_template("comparison.html.j2")
        .render(
            assets=assets.load(),
            contents=CONTENTS,
            run=comparison,
            when=moment(comparison.created),
            metric=main,
            verdict=true_minus(comparison.sentences[0]),
            sentences=[true_minus(each) for each in comparison.sentences[1:]],
            made_by=made_by(comparison),
            own=_own_figure(comparison),
            beyond=_figure(comparison, ("others", "worst")),
            names=["Method", "Rate", *(_title(measure, comparison) for measure in MEASURES)],
            numbers=[_table_row(row) for row in comparison.rows],
            differences=[_difference_row(row, comparison) for row in comparison.rows],
            chosen_by=chosen_by(comparison),
            rates=[_rates(row) for row in comparison.rows if row.tried],
            notes=[(row_name(row.name), note) for row in comparison.rows for note in row.notes],
            record=_record(comparison),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _title(measure: Measure, comparison: MethodComparison) -> str:
    words = heading(measure, comparison.main_metric)
    return words[0].upper() + words[1:]


def _own_figure(comparison: MethodComparison) -> Figure:
    """Return own test beside its paired difference to the best method."""
    levels = _scale([row.cells.get("own") for row in comparison.rows])
    effects = _scale([row.difference for row in comparison.rows], zero=True)
    lines = tuple(
        _line(row, _level(row, "own", levels), _effect(row, comparison, effects))
        for row in comparison.rows
    )
    lower = METRICS[comparison.main_metric].direction == "lower"
    sides = ("is better", "is worse") if lower else ("is worse", "is better")
    axes = (marks.axis(levels), marks.axis(effects, *sides))
    return Figure((_title("own", comparison), f"Minus {comparison.best or 'best'}"), lines, axes)


def _figure(comparison: MethodComparison, both: tuple[Measure, Measure]) -> Figure:
    scales = [_scale([row.cells.get(measure) for row in comparison.rows]) for measure in both]
    lines = tuple(
        _line(row, *(_level(row, m, scale) for m, scale in zip(both, scales, strict=True)))
        for row in comparison.rows
    )
    labels = (_title(both[0], comparison), _title(both[1], comparison))
    return Figure(labels, lines, (marks.axis(scales[0]), marks.axis(scales[1])))


def _scale(cells: Sequence[Cell | None], *, zero: bool = False) -> Scale:
    ends = [0.0] if zero else []
    for entry in cells:
        if entry is not None:
            low, high = entry.low, entry.high
            ends += [entry.value, *(end for end in (low, high) if end is not None)]
    if not ends:
        return nice_scale(0.0, 1.0)
    low, high = min(ends), max(ends)
    if high - low < 1e-4:
        low, high = low - 0.01, high + 0.01
    return nice_scale(low, high, most=4, signed=zero)


def _line(row: Row, *strips: Strip) -> Line:
    return Line(row_name(row.name), "" if row.rate is None else f"rate {row.rate:g}", strips)


def _level(row: Row, measure: Measure, scale: Scale) -> Strip:
    entry = row.cells.get(measure)
    if entry is None:
        return Strip(None, "; ".join(row.notes) or "not measured")
    value, ends = shown(measure, entry)
    interval = f" ({ends})" if ends and ends != DASH else ", one seed"
    return Strip(_draw(row, entry, scale, quiet=False), value + interval)


def _effect(row: Row, comparison: MethodComparison, scale: Scale) -> Strip:
    if row.name == comparison.best:
        return Strip(None, "The best method; the others are compared with it")
    if row.difference is None:
        return Strip(None, "no seed in common" if "own" in row.cells else "no numbers")
    value, ends = shown_difference(row.difference)
    interval = f" ({ends})" if ends and ends != DASH else ", one seed"
    quiet = row.word == "within noise"
    return Strip(_draw(row, row.difference, scale, quiet=quiet), value + interval, row.word or "")


def _draw(row: Row, entry: Cell, scale: Scale, *, quiet: bool) -> Markup:
    low = entry.value if entry.low is None else entry.low
    high = entry.value if entry.high is None else entry.high
    n = sum(value is not None for value in entry.by_seed)
    estimate = Estimate(value=entry.value, low=low, high=high, n=n)
    return charts.effect(estimate, scale, row.kind, _MARK, quiet=quiet)


def _table_row(row: Row) -> tuple[str, str, list[tuple[str, str]]]:
    rate = DASH if row.rate is None else f"{row.rate:g}"
    return (
        row_name(row.name),
        rate,
        [shown(measure, row.cells.get(measure)) for measure in MEASURES],
    )


def _difference_row(row: Row, comparison: MethodComparison) -> tuple[str, str, str, str]:
    if row.name == comparison.best:
        return row_name(row.name), "best", "", ""
    return row_name(row.name), *shown_difference(row.difference), row.word or ""


def _rates(row: Row) -> tuple[str, str, list[tuple[str, bool]]]:
    """Return name, the base's number, and every rate's with whether the rate was chosen.

    Numbers are of the main metric, or losses where it could not be measured.
    """
    measured = all(each.level is not None for each in row.tried if each.loss is not None)
    found = [
        (
            each.rate,
            each.level if measured else each.loss,
            each.base_level if measured else each.base_loss,
        )
        for each in row.tried
    ]
    said = [
        ("not finite" if value is None else number(value), rate == row.rate)
        for rate, value, _ in found
    ]
    base = next((untouched for _, _, untouched in found if untouched is not None), None)
    return row_name(row.name), DASH if base is None else number(base), said


def _record(comparison: MethodComparison) -> list[tuple[str, str]]:
    return [
        ("Command", comparison.command),
        ("Job", comparison.name),
        ("Digest of job and records", comparison.job_sha256),
        ("Sites", ", ".join(comparison.sites)),
        ("Seeds", ", ".join(map(str, comparison.seeds))),
        ("Rounds", f"{plural(comparison.rounds, 'round')} of {comparison.steps}"),
        *comparison.facts.items(),
    ]
