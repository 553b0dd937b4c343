"""Marks as inline SVG that never scales its text.

Horizontal positions are percentages, vertical ones pixels or percentages, so a strip fits
any column width while lines stay 1.75 px and labels stay 12 px. Colour comes from CSS
classes only: no ``style`` attribute, so a page can carry a strict content policy and two
themes.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from shared.page.markup import trusted
from shared.page.numbers import nice_step, number


@dataclass(frozen=True)
class Scale:
    """A linear axis.

    Attributes:
        low: Value at the left or lower end.
        high: Value at the right or upper end.
        ticks: Where labels stand.
        places: Decimals of a label.
        signed: Whether labels carry a plus sign.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    places: int = 2
    signed: bool = False

    def share(self, value: float) -> float:
        """Return where ``value`` lies, 0 to 1; beyond the ends it stays at the end."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def at(self, value: float) -> str:
        """Return the horizontal position of ``value``."""
        return percent(100 * self.share(value))

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies on the axis."""
        return self.low <= value <= self.high

    def label(self, value: float) -> str:
        """Return the label of a tick."""
        return number(value, self.places, signed=self.signed)


@dataclass(frozen=True)
class LogScale(Scale):
    """A logarithmic axis; both ends and what is asked for lie above 0."""

    def share(self, value: float) -> float:
        """Return where ``value`` lies, 0 to 1; beyond the ends it stays at the end."""
        inside = min(max(value, self.low), self.high)
        return math.log(inside / self.low) / math.log(self.high / self.low)

    def label(self, value: float) -> str:
        """Return the label of a tick."""
        return f"{value:g}"


def percent(value: float) -> str:
    """Return ``value`` as a percentage with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def nice_scale(
    low: float,
    high: float,
    *,
    most: int = 4,
    floor: float | None = None,
    ceiling: float | None = None,
    signed: bool = False,
) -> Scale:
    """Return an axis that covers ``low`` to ``high`` with round ticks.

    Args:
        low: Least value to show.
        high: Greatest value to show.
        most: At most this many steps between ticks.
        floor: The axis starts exactly here if given.
        ceiling: The axis never reaches beyond this value.
        signed: Whether tick labels carry a plus sign.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        low, high = (low, low + 1) if math.isfinite(low) else (0.0, 1.0)
    pad = 0.05 * (high - low)
    start = floor if floor is not None else low - pad
    end = high + pad if ceiling is None else min(high + pad, ceiling)
    end = max(end, start + 1e-9)
    step = nice_step(end - start, most)
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = tuple(round(k * step, places + 2) for k in range(first, last + 1))
    return Scale(start, end, ticks, places, signed)


def log_scale(low: float, high: float, *, most: int = 4) -> LogScale:
    """Return a logarithmic axis that covers ``low`` to ``high``, and at least a factor of 2.

    Args:
        low: Least value to show, above 0.
        high: Greatest value to show.
        most: At most this many ticks, as far as powers of ten allow.
    """
    low, high = min(low, high / 2**0.5) / 1.1, max(high, low * 2**0.5) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: tuple[float, ...] = ()
    for digits in ((1, 2, 5), (1, 3), (1,)):
        every = (float(f"{digit}e{power}") for power in powers for digit in digits)
        ticks = tuple(tick for tick in every if low <= tick <= high)
        if len(ticks) <= most:
            break
    return LogScale(low, high, ticks)


def point(x: str, body: str, y: str = "50%") -> str:
    """Return ``body``, drawn around the origin, at a position in percent."""
    return f'<svg x="{x}" y="{y}" class="o">{body}</svg>'


SHAPES = {
    "base": '<circle r="4" class="hollow s-base"/>',
    "local": '<path d="M0-5.2 5 4-5 4Z" class="fill s-local"/>',
    "shared": '<rect x="-4.2" y="-4.2" width="8.4" height="8.4" class="fill s-shared"/>',
    "personal": '<path d="M0-6 6 0 0 6-6 0Z" class="fill s-personal"/>',
    "centralised": '<path d="M-4.2-4.2 4.2 4.2M4.2-4.2-4.2 4.2" class="cross s-centralised"/>',
}

CELLS = {
    "in": '<rect x="-4.5" y="-4.5" width="9" height="9" rx="1.5" class="fill s-in"/>',
    "late": '<rect x="-4.2" y="-4.2" width="8.4" height="8.4" rx="1.5" class="hollow s-late"/>'
    '<path d="M-4.2 4.2V-4.2L4.2 4.2Z" class="fill s-late"/>',
    "missing": '<path d="M-4-4 4 4M4-4-4 4" class="cross s-missing"/>',
    "refused": '<circle r="4.6" class="hollow s-missing"/>'
    '<path d="M-3.2 3.2 3.2-3.2" class="cross s-missing"/>',
    "idle": '<circle r="2.3" class="fill s-idle"/>',
}
CELL_WORDS = {
    "in": "contributed",
    "late": "contributed late",
    "missing": "missing",
    "refused": "refused by a check",
    "idle": "not asked",
}


def definitions() -> Markup:
    """Return the participation marks, once, for ``<use>``."""
    groups = "".join(f'<g id="cell-{state}">{body}</g>' for state, body in CELLS.items())
    return trusted(
        f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{groups}</defs></svg>'
    )


def _key(body: str) -> Markup:
    return trusted(
        '<svg class="key" width="16" height="16" aria-hidden="true">'
        f'<g transform="translate(8 8)">{body}</g></svg>'
    )


def series_key(series: str) -> Markup:
    """Return the mark of a series for a key."""
    return _key(SHAPES[series])


def line_key(cls: str) -> Markup:
    """Return a piece of a line for a key."""
    return _key(f'<path d="M-8 0H8" class="curve {cls}"/>')


def cell_key(state: str) -> Markup:
    """Return the mark of a participation state for a key."""
    return _key(CELLS[state])


def grid(scale: Scale, zero: float | None = None) -> str:
    """Return a line for each tick, dashed at ``zero``."""
    lines = "".join(
        f'<line x1="{scale.at(t)}" x2="{scale.at(t)}" y1="0" y2="100%" class="grid"/>'
        for t in scale.ticks
        if t != zero
    )
    if zero is not None and scale.holds(zero):
        x = scale.at(zero)
        lines += f'<line x1="{x}" x2="{x}" y1="0" y2="100%" class="zero"/>'
    return lines


def strip(body: str, cls: str = "") -> Markup:
    """Return a drawing as wide as its table cell, hidden from readers: numbers stand beside it."""
    return trusted(
        f'<span class="{("strip " + cls).strip()}"><svg width="100%" height="100%" '
        f'aria-hidden="true" focusable="false">{body}</svg></span>'
    )


def plot(body: str) -> Markup:
    """Return a drawing that fills its box; the box carries the words."""
    return trusted(f'<svg class="plot" width="100%" height="100%" aria-hidden="true">{body}</svg>')


def text(x: str, y: str, words: str, anchor: str = "", more: str = "") -> str:
    """Return one label."""
    start = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x}" y="{y}"{start}{more}>{escape(words)}</text>'


def axis(scale: Scale, left: str = "", right: str = "") -> Markup:
    """Return the axis below a column of strips; ``left`` and ``right`` name the directions."""
    out = '<line x1="0" x2="100%" y1="0.5" y2="0.5" class="axis"/>'
    for tick in scale.ticks:
        at, x = scale.share(tick), scale.at(tick)
        anchor = "start" if at < 0.04 else "end" if at > 0.96 else "middle"
        out += f'<line x1="{x}" x2="{x}" y1="0" y2="5" class="axis"/>'
        out += text(x, "18", scale.label(tick), anchor)
    if left:
        out += text("0", "34", f"\u2190 {left}", more=' class="dir"')
    if right:
        out += text("100%", "34", f"{right} \u2192", "end", ' class="dir"')
    return strip(out, "axis-strip")
