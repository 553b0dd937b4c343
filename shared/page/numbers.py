"""Numbers as people read them: true minus signs, intervals in words, units, short lists."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, Protocol

MINUS = "\u2212"
THIN = "\u202f"  # narrow no-break space

_RAISED = "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"

Reading = Literal["better", "worse", "within noise"]


class Interval(Protocol):
    """A value with the ends of its 95 % interval."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


def number(value: float, places: int = 3, *, signed: bool = False) -> str:
    """Return ``value`` with a true minus sign; zero has no sign."""
    text = f"{abs(value):.{places}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def decimals(low: float, high: float, most: int, *, signed: bool = False) -> int:
    """Return how many decimals an interval deserves.

    The last digit is no finer than a tenth of the half-width. One exception, for differences:
    an end that is not zero must not be printed as zero, or the word beside it would seem wrong.
    """
    places, half = most, (high - low) / 2
    while places > 1 and 10.0**-places < half / 10 * (1 - 1e-9):
        places -= 1
    while (
        signed and places < 4 and any(end != 0 and round(end, places) == 0 for end in (low, high))
    ):
        places += 1
    return places


def interval(row: Interval, most: int = 3, *, signed: bool = False) -> str:
    """Return ``0.068 (0.041 to 0.095)``: the word, because a dash next to a minus misreads."""
    places = decimals(row.low, row.high, most, signed=signed)
    value = number(row.value, places, signed=signed)
    return f"{value} ({number(row.low, places)} to {number(row.high, places)})"


def reading(row: Interval, *, margin: float = 0.0, lower_is_better: bool = False) -> Reading:
    """Return the only words that a difference may get."""
    if abs(row.value) < margin or row.low <= 0 <= row.high:
        return "within noise"
    return "better" if (row.low > 0) != lower_is_better else "worse"


def power(value: float) -> str:
    """Return ``3.2 \u00d7 10\u207b\u2077`` for small or large values, plain digits otherwise."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 10_000:
        return number(value, 3)
    digits, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", _RAISED))
    return f"{number(float(digits), 1)} \u00d7 10{raised}"


def thousands(count: int) -> str:
    """Return ``12 345`` with narrow no-break spaces."""
    return f"{count:,}".replace(",", THIN)


def size(count: float) -> str:
    """Return a number of bytes in decimal units, such as ``1.3 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 999 950 bytes would otherwise print as 1000.0 kB.
        if count >= scale * 0.99995:
            value = count / scale
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Return ``5 h 47 min``, ``3 min 20 s``, ``12 s`` or ``0.4 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return ``1 site`` or ``3 sites``."""
    return f"{thousands(count)} {one if count == 1 else many or one + 's'}"


def listing(items: Sequence[str], most: int = 4) -> str:
    """Return ``A, B and C``; beyond ``most`` items ``A, B and 5 more``."""
    shown = list(items)
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(items) - most + 1} more"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + f" and {shown[-1]}"


def short(name: str, most: int = 24) -> str:
    """Return at most ``most`` characters of a name."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "\u2026"


def ranges(numbers: Sequence[int]) -> str:
    """Return ``1 to 3, 7, 9 to 12`` for ascending whole numbers."""
    parts: list[list[int]] = []
    for value in numbers:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    words = []
    for run in parts:
        words += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(value) for value in run]
    return ", ".join(words)


def day(stamp: str) -> str:
    """Return ``18 November 2026`` for an ISO time; anything else comes back as it is."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment.day} {moment:%B %Y}"


def moment(stamp: str) -> str:
    """Return ``2026-11-18 20:31 UTC`` for an ISO time; anything else comes back as it is."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    if when.tzinfo is None:
        return f"{when:%Y-%m-%d %H:%M}, zone not recorded"
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def true_minus(text: str) -> str:
    """Replace a hyphen that stands for minus before a digit."""
    return re.sub(r"(?<![\w\d-])-(?=\d)", MINUS, text)


def nice_step(span: float, most: int) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that gives at most ``most`` steps."""
    if not span > 0 or not math.isfinite(span):
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= most)
