"""What a comparison's numbers allow to say, and how numbers, rows and measures are called."""

from collections.abc import Sequence

from shared.metrics import METRICS
from shared.page.numbers import duration, listing, number, power, size
from shared.results import Metric
from simulations.compare.model import Cell, Measure, MethodComparison, Row

NAMES = {"local": "local-only", "base": "base, untouched"}
DASH = "\u2013"


def row_name(name: str) -> str:
    """Return a row's name for people."""
    return NAMES.get(name, name)


def heading(measure: Measure, main: Metric) -> str:
    """Return a measure's column heading."""
    label = METRICS[main].label
    return {
        "own": f"own test, {label}",
        "worst": f"worst site, {label}",
        "others": f"other sites' tests, {label}",
        "auroc": "zero-shot AUROC",
        "i2t_r5": "R@5 image to text",
        "t2i_r5": "R@5 text to image",
        "error": "aggregation error",
        "bytes_up": "sent up",
        "bytes_down": "sent down",
        "seconds": "time",
    }[measure]


def shown(measure: Measure, entry: Cell | None) -> tuple[str, str]:
    """Return a number as people read it, and its interval; dashes where there is none."""
    if entry is None:
        return DASH, ""
    formats = {"error": _error, "bytes_up": size, "bytes_down": size, "seconds": duration}
    write = formats.get(measure, number)
    if entry.low is None or entry.high is None:
        return write(entry.value), DASH
    if write is not number:
        ends = [write(max(end, 0.0)) for end in (entry.low, entry.high)]
        return write(entry.value), " to ".join(ends) if ends[0] != ends[1] else ""
    return write(entry.value), f"{number(entry.low)} to {number(entry.high)}"


def _error(value: float) -> str:
    return power(value) if value == 0 or value >= 1e-3 else f"{value:.0e}"


def chosen_by(comparison: MethodComparison) -> str:
    """Return what rates were chosen by, and on which records, to follow "chosen by"."""
    seed = comparison.tuning_seed
    if any(each.level is None for row in comparison.rows for each in row.tried if each.loss):
        return f"the validation loss on seed {seed}, which is not compared"
    label = METRICS[comparison.main_metric].label
    if comparison.phantoms:
        return f"{label} on seed {seed}, whose records are not compared"
    return f"{label} of the validation records with seed {seed}; test records were not looked at"


def shown_difference(entry: Cell | None) -> tuple[str, str]:
    """Return a difference and its interval, with signs."""
    if entry is None:
        return DASH, ""
    value = number(entry.value, signed=True)
    if entry.low is None or entry.high is None:
        return value, DASH
    return value, f"{number(entry.low, signed=True)} to {number(entry.high, signed=True)}"


def sentences(rows: Sequence[Row], best: str | None, main: Metric, seeds: int) -> list[str]:
    """Return what may be said: the best method, what cannot be told from it, what federating pays.

    Args:
        rows: All rows; differences are to the best method.
        best: Its name.
        main: The main metric.
        seeds: How many were compared.
    """
    by_name = {row.name: row for row in rows}
    if best is None:
        return ["No method reached a result; see the notes."]
    value, ends = shown("own", by_name[best].cells["own"])
    label = METRICS[main].label
    found = [
        f"{best} has the best own test: {label} {value} ({ends if seeds > 1 else 'one seed'})."
    ]
    if seeds < 2:
        found.append(
            "One seed has no interval, so nothing is said about differences; 3 seeds or more do."
        )
        return [*found, *_failed(rows)]
    others = [row for row in rows if row.kind in ("shared", "personal") and row.name != best]
    level = [row.name for row in others if row.word == "within noise"]
    worse = [row.name for row in others if row.word == "worse"]
    if level:
        found.append(f"Not distinguishable from it over these seeds: {listing(level, 20)}.")
    if worse:
        found.append(f"Worse: {listing(worse, 20)}.")
    found += _references(by_name, best)
    return [*found, *_failed(rows)]


def _references(by_name: dict[str, Row], best: str) -> list[str]:
    """What the best method is worth beside no federation at all, and beside pooling all data."""
    says = {
        ("local", "better"): f"Local-only is better than {best}: federating does not pay here.",
        ("local", "within noise"): (
            f"Local-only cannot be told from {best}: on own tests, federating does not show here."
        ),
        ("local", "worse"): f"Local-only is worse than {best}: federating pays here.",
        ("base", "better"): f"The untouched base is better than {best}: training does harm here.",
        ("base", "within noise"): f"The untouched base cannot be told from {best}.",
        ("centralised", "better"): f"Centralised training is better than {best}.",
        ("centralised", "within noise"): f"Centralised training cannot be told from {best}.",
        ("centralised", "worse"): f"Centralised training is worse than {best}.",
    }
    found = []
    for name in ("local", "centralised", "base"):
        row = by_name.get(name)
        if row is not None and row.word and (name, row.word) in says:
            found.append(says[name, row.word])
    return found


def _failed(rows: Sequence[Row]) -> list[str]:
    lost = [row for row in rows if "own" not in row.cells]
    return [
        f"{row_name(row.name)} has no numbers: {'; '.join(row.notes) or 'nothing was measured'}."
        for row in lost
    ]
