"""Charts made of marks: forest rows, level lanes, participation, course, calibration, time."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from shared.page.marks import (
    SHAPES,
    Scale,
    grid,
    percent,
    plot,
    point,
    strip,
    text,
)
from shared.page.markup import trusted
from shared.page.numbers import Interval

_LEFT, _RIGHT = "M0-4-6 0 0 4Z", "M0-4 6 0 0 4Z"


def _span(row: Interval, scale: Scale, series: str, y: str = "50%") -> str:
    """Return the interval line; an end beyond the axis gets an arrow head."""
    out = f'<line x1="{scale.at(row.low)}" x2="{scale.at(row.high)}" y1="{y}" y2="{y}" '
    out += f'class="ci s-{series}"/>'
    for end, shape, beyond in (
        (row.low, _LEFT, row.low < scale.low),
        (row.high, _RIGHT, row.high > scale.high),
    ):
        if beyond:
            out += point(scale.at(end), f'<path d="{shape}" class="fill s-{series}"/>', y)
    return out


def effect(row: Interval, scale: Scale, series: str, precision: float, *, quiet: bool) -> Markup:
    """Return one site of a forest plot: square by precision, line over the interval.

    Args:
        row: The difference and its interval.
        scale: The axis of the column.
        series: Colour of the mark.
        precision: Narrowest half-width of the column over this one, 0 to 1.
        quiet: Hollow, for a difference within noise.
    """
    side = 5 + 8 * min(max(precision, 0.0), 1.0)
    mark = (
        f'<rect x="{-side / 2:.1f}" y="{-side / 2:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'class="fill s-{series}{" quiet" if quiet else ""}"/>'
    )
    return strip(grid(scale, 0) + _span(row, scale, series) + point(scale.at(row.value), mark))


def summary(row: Interval, scale: Scale, new: tuple[float, float] | None) -> Markup:
    """Return the mean of sites as a diamond, with the range of a new site as a thin line."""
    left, right = 100 * scale.share(row.low), 100 * scale.share(row.high)
    if right - left < 1:  # keep a diamond of no width visible
        left, right = max(0.0, left - 0.5), min(100.0, right + 0.5)
    middle = 100 * (100 * scale.share(row.value) - left) / (right - left)
    out = grid(scale, 0)
    if new is not None:
        a, b = (scale.at(end) for end in new)
        out += f'<line x1="{a}" x2="{b}" y1="50%" y2="50%" class="pi"/>'
        for x in (a, b):
            out += f'<line x1="{x}" x2="{x}" y1="38%" y2="62%" class="pi"/>'
    out += (
        f'<svg x="{percent(left)}" y="0" width="{percent(right - left)}" height="100%" '
        'viewBox="0 0 100 100" preserveAspectRatio="none">'
        f'<path d="M0 50 {middle:.1f} 28 100 50 {middle:.1f} 72Z" class="fill s-ink"/></svg>'
    )
    return strip(out)


def levels(
    values: Mapping[str, Interval], scale: Scale, order: Sequence[str], zero: float | None = None
) -> Markup:
    """Return one site, one lane per model: mark and interval."""
    out = grid(scale, zero)
    for lane, series in enumerate(order):
        row = values.get(series)
        if row is None:
            continue
        y = percent(100 * (lane + 0.75) / (len(order) + 0.5))
        out += _span(row, scale, series, y) + point(scale.at(row.value), SHAPES[series], y)
    return strip(out)


def rounds(states: Sequence[tuple[str, str]]) -> Markup:
    """Return one mark per round or bin; ``states`` holds (state, words), words for a pointer."""
    out = ""
    for index, (state, words) in enumerate(states):
        body = f'<use href="#cell-{state}"/>'
        if words:
            hit = '<rect x="-6" y="-12" width="12" height="24" class="hit"/>'
            body = f"<g><title>{escape(words)}</title>{hit}{body}</g>"
        out += point(percent(100 * (index + 0.5) / len(states)), body)
    return strip(out)


def rounds_axis(labels: Mapping[float, str], bars: Mapping[float, str]) -> Markup:
    """Return round numbers and bars between rounds; positions are shares of the width."""
    out = ""
    for at, label in labels.items():
        out += text(percent(100 * at), "14", label, "middle")
    for at, label in bars.items():
        x = percent(100 * at)
        out += f'<line x1="{x}" x2="{x}" y1="0" y2="22" class="mark"/>'
        anchor = "start" if at < 0.15 else "end" if at > 0.85 else "middle"
        out += text(x, "34", label, anchor, ' class="dir"') if label else ""
    return strip(out, "axis-strip")


def curve(points: Mapping[int, float], last: int, scale: Scale, name: str) -> str:
    """Return a line over rounds 0 to ``last`` with a name, for ``<use>``."""
    return f'<path id="{name}" d="{_path(points, last, scale)}" class="curve"/>'


def _path(points: Mapping[int, float], last: int, scale: Scale) -> str:
    """Return what to draw over rounds 0 to ``last``, with a gap where a round is missing.

    A point with no neighbour would be invisible as a line, so it gets a stroke of no length,
    which round caps turn into a dot.
    """
    d = ""
    known = sorted(points)
    neighbours = {r for a, b in pairwise(known) if b == a + 1 for r in (a, b)}
    before: int | None = None
    for r in known:
        x, y = 1000 * r / max(last, 1), 1000 - 1000 * scale.share(points[r])
        d += f"{'L' if before == r - 1 else 'M'}{x:.0f} {y:.0f}"
        d += "" if r in neighbours else "h0"
        before = r
    return d


def curves(paths: Iterable[str], group: str) -> Markup:
    """Return all curves once, for ``<use>``: each panel shows the others as context."""
    return trusted(
        '<svg class="defs" width="0" height="0" aria-hidden="true"><defs>'
        f'<g id="{group}">{"".join(paths)}</g></defs></svg>'
    )


def course(name: str, group: str, scale: Scale, last: int, gaps: Iterable[int]) -> Markup:
    """Return one panel: this site in colour over all sites in grey, crosses at missed rounds."""
    out = _over_rounds(scale, last)
    for r in gaps:
        out += point(percent(100 * r / max(last, 1)), '<use href="#cell-missing"/>', "94%")
    uses = f'<use href="#{group}" class="s-ghost"/><use href="#{name}" class="s-shared"/>'
    return plot(out + _stretched(uses))


def lines(
    curves: Sequence[tuple[Mapping[int, float], str]],
    scale: Scale,
    last: int,
    level: float | None = None,
) -> Markup:
    """Return lines over rounds 0 to ``last``, later ones above earlier ones.

    Args:
        curves: Values by round, and the class of the line.
        scale: The axis.
        last: The last round.
        level: A tick whose line is dashed.
    """
    paths = ""
    for points, cls in curves:
        paths += f'<path d="{_path(points, last, scale)}" class="curve {cls}"/>'
        alone = {r: v for r, v in points.items() if not {r - 1, r + 1} & points.keys()}
        paths += f'<path d="{_path(alone, last, scale)}" class="curve {cls} dot"/>' if alone else ""
    return plot(_over_rounds(scale, last, level) + _stretched(paths))


def _over_rounds(scale: Scale, last: int, level: float | None = None) -> str:
    """Return the axis at the left, and the first, middle and last round below."""
    out = ""
    for tick in scale.ticks:
        y, cls = percent(100 - 100 * scale.share(tick)), "zero" if tick == level else "grid"
        out += f'<line x1="0" x2="100%" y1="{y}" y2="{y}" class="{cls}"/>'
        out += text("-6", y, scale.label(tick), "end", ' dy="4"')
    for r in sorted({0, last // 2, last} if last > 3 else {0, last}):
        anchor = "start" if r == 0 else "end" if r == last else "middle"
        out += text(percent(100 * r / max(last, 1)), "100%", str(r), anchor, ' dy="16"')
    return out


def _stretched(curves: str) -> str:
    """Return curves drawn in thousandths of their box, whatever its shape."""
    return (
        '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" '
        f'class="o">{curves}</svg>'
    )


def calibration(bins: Sequence[tuple[float, Interval, int]], hollow_under: int) -> Markup:
    """Return observed share against predicted, with intervals, over the number of predictions.

    Args:
        bins: (predicted, observed with its interval, predictions) of each bin.
        hollow_under: Points that rest on fewer predictions are hollow.
    """
    top = max((n for _, _, n in bins), default=1)
    out = '<line x1="0" y1="80%" x2="100%" y2="0" class="zero"/>'
    for t in (0, 0.5, 1):
        y, anchor = percent(80 - 80 * t), "start" if t == 0 else "end" if t == 1 else "middle"
        out += f'<line x1="0" x2="100%" y1="{y}" y2="{y}" class="grid"/>'
        out += text("-6", y, f"{t:g}", "end", ' dy="4"')
        out += text(percent(100 * t), "100%", f"{t:g}", anchor, ' dy="15"')
    for predicted, row, n in bins:
        x, height = percent(100 * predicted), 17 * n / max(top, 1)
        left = min(max(100 * predicted - 2.5, 0), 95)
        out += f'<rect x="{percent(left)}" y="{percent(100 - height)}" width="5%" '
        out += f'height="{percent(height)}" class="bar"/>'
        out += f'<line x1="{x}" x2="{x}" y1="{percent(80 - 80 * row.low)}" '
        out += f'y2="{percent(80 - 80 * row.high)}" class="ci s-personal"/>'
        style = "hollow" if n < hollow_under else "fill"
        mark = f'<circle r="3.6" class="{style} s-personal"/>'
        out += point(x, mark, percent(80 - 80 * row.value))
    return plot(out)


def stack(parts: Sequence[tuple[float, str, str]], top: float) -> Markup:
    """Return one bar in parts, in the order given: (value, class, words)."""
    out, x = "", 0.0
    for value, cls, words in parts:
        width = 100 * value / top
        out += f'<rect x="{percent(x)}" y="26%" width="{percent(width)}" height="48%" '
        out += f'class="{cls}"><title>{escape(words)}</title></rect>'
        x += width
    return strip(out)
