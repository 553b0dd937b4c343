"""The comparison as a table on a terminal, as CSV, and as a page of Markdown."""

import csv
import io

from rich import box
from rich.table import Table
from rich.text import Text

from shared.metrics import METRICS
from shared.page.numbers import listing, plural
from simulations.compare.model import MEASURES, Cell, Measure, MethodComparison, Row
from simulations.compare.words import (
    DASH,
    chosen_by,
    heading,
    row_name,
    shown,
    shown_difference,
)

_NAME = 24
_STYLES = {"better": "green", "worse": "red", "within noise": "dim"}
_SHORT: dict[Measure, str] = {
    "own": "own test",
    "worst": "worst site",
    "others": "other sites",
    "auroc": "AUROC",
    "error": "error",
}


def terminal_table(comparison: MethodComparison) -> Table:
    """Return the final table; it fits 112 columns."""
    main = METRICS[comparison.main_metric]
    wide: list[Measure] = ["own", "worst", "others"]
    wide += [] if comparison.main_metric == "auroc" else ["auroc"]
    over = plural(len(comparison.seeds), "seed")
    table = Table(
        title=f"{comparison.name}: {main.label}, {main.direction} is better; mean and 95 % "
        f"interval over {over}",
        caption="\n".join(comparison.sentences),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="",
    )
    table.add_column("method", max_width=_NAME, overflow="fold")
    table.add_column(_SHORT["own"], justify="right", no_wrap=True)
    table.add_column("minus best", justify="right", no_wrap=True)
    for measure in wide[1:]:
        table.add_column(_SHORT[measure], justify="right", no_wrap=True)
    table.add_column("R@5 i\u2192t\nand t\u2192i", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("up, down", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for number, row in enumerate(comparison.rows):
        if row.kind not in {"shared", "personal"} and comparison.rows[number - 1].kind in {
            "shared",
            "personal",
        }:
            table.add_section()
        table.add_row(*_cells(row, wide, comparison))
    return table


def _cells(row: Row, wide: list[Measure], comparison: MethodComparison) -> list[Text]:
    # Why there is no rate stands below the table, where there is room for it.
    rate = f"rate {row.rate:g}" if row.rate is not None else "no rate" if row.tried else ""
    name = Text(row_name(row.name), "bold" if row.name == comparison.best else "")
    out = [Text.assemble(name, "\n", (rate, "dim"))]
    for measure in wide:
        value, ends = shown(measure, row.cells.get(measure))
        out.append(_two(value, ends.replace(" to ", "\u2013")))
        if measure == "own":
            out.append(_difference(row, comparison))
    values = {m: shown(m, row.cells.get(m))[0] for m in MEASURES}
    out.append(Text(f"{values['i2t_r5']}\n{values['t2i_r5']}"))
    out.append(Text(values["error"]))
    out.append(Text(f"{values['bytes_up']}\n{values['bytes_down']}"))
    out.append(Text(values["seconds"]))
    return out


def _two(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _difference(row: Row, comparison: MethodComparison) -> Text:
    if row.name == comparison.best:
        return Text("best", "bold")
    value, ends = shown_difference(row.difference)
    word = row.word or ""
    return Text.assemble(f"{value} ", (word, _STYLES.get(word, "")), "\n", (ends, "dim"))


def to_csv(comparison: MethodComparison) -> str:
    """Return one line per row and measure, the difference included, with a column per seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    seeds = [f"seed_{seed}" for seed in comparison.seeds]
    writer.writerow(["method", "rate", "measure", "mean", "low", "high", *seeds])
    for row in comparison.rows:
        cells: dict[str, Cell] = {str(measure): entry for measure, entry in row.cells.items()}
        if row.difference is not None:
            cells["minus_best"] = row.difference
        start = [row.name, "" if row.rate is None else f"{row.rate:g}"]
        for measure, entry in cells.items():
            numbers = [entry.value, entry.low, entry.high, *entry.by_seed]
            writer.writerow([*start, measure, *("" if n is None else repr(n) for n in numbers)])
        if not cells:
            writer.writerow([*start, "none", *([""] * (3 + len(seeds)))])
    return file.getvalue()


def to_markdown(comparison: MethodComparison) -> str:
    """Return a table for documents, below the command that makes it."""
    main = comparison.main_metric
    names = [heading(measure, main) for measure in MEASURES]
    names.insert(1, f"minus {comparison.best or 'best'}")
    lines = ["```console", f"$ {comparison.command}", "```", "", made_by(comparison), ""]
    lines += [f"| method | rate | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in comparison.rows:
        cells = [_joined(*shown(measure, row.cells.get(measure))) for measure in MEASURES]
        best = row.name == comparison.best
        against = _joined(*shown_difference(row.difference)) + (f" {row.word}" if row.word else "")
        cells.insert(1, "best" if best else against)
        name = f"**{row.name}**" if best else row_name(row.name)
        rate = DASH if row.rate is None else f"{row.rate:g}"
        lines.append(f"| {name} | {rate} | {' | '.join(cells)} |")
    noted = [row for row in comparison.rows if "own" in row.cells]
    says = [*comparison.sentences]
    says += [f"{row_name(row.name)}: {note}." for row in noted for note in row.notes]
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in says)]) + "\n"


def _joined(value: str, ends: str) -> str:
    return f"{value} ({ends})" if ends and ends != DASH else value


def made_by(comparison: MethodComparison) -> str:
    """Return how the numbers were made, as sentences."""
    seeds, rates = comparison.seeds, ", ".join(f"{rate:g}" for rate in comparison.rates)
    found = [
        f"{plural(len(comparison.sites), 'site')}, {plural(comparison.rounds, 'round')} of "
        f"{comparison.steps} for every row; personal adapters take "
        f"{plural(comparison.personal_steps, 'step')} more."
    ]
    if len(seeds) > 1:
        data = "each with records of its own"
        if not comparison.phantoms:
            data = "all on the same records, so intervals say nothing of other records"
        over = listing([str(seed) for seed in seeds], 12)
        found.append(f"Mean and 95 % interval (Student's t) over seeds {over}, {data}.")
    else:
        found.append(f"Measured on seed {seeds[0]} alone, so there are no intervals.")
    if comparison.tuning_seed is not None:
        found.append(f"Every row chose its learning rate from {rates} by {chosen_by(comparison)}.")
    else:
        found.append(f"One learning rate for every row: {rates}.")
    if comparison.best and len(seeds) > 1:
        found.append(
            "The best method was picked by these same numbers, so differences to it look a "
            "little larger than they are."
        )
    return " ".join(found)
