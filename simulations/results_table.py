"""The table at the end of a run: was joining worth it, site by site, in 100 columns."""

from rich import box
from rich.table import Table
from rich.text import Text

from shared.metrics import METRICS
from shared.page.numbers import number, reading, short, thousands
from shared.results import Comparison, Estimate, Model, Results
from simulations.report.pooling import pool
from simulations.report.readings import main_comparison, read
from simulations.report.verdict import verdict

_COLUMNS: dict[Model, str] = {
    "base": "base",
    "local": "local",
    "shared": "shared",
    "personal": "personal",
    "centralised": "central.",
}

_STYLES = {"better": "green", "worse": "red", "within noise": "dim"}

_NAME, _OWNER, _LAST = 20, 9, 21
"""Widest site name, site name under a worst value, and last column."""


def results_table(results: Results) -> Table:
    """Return the final table of a run; it fits 100 columns.

    Per site: kind and training pairs, the main measure of every model with its 95 % interval,
    and the paired difference with its word. Below: mean of sites, worst site, one sentence.
    """
    metric, comparison = results.main_metric, main_comparison(results)
    info = METRICS[metric]
    models = [model for model in _COLUMNS if metric in results.mean.metrics.get(model, {})]
    table = Table(
        title=f"{info.label}: {info.direction} is better, chance {info.chance_words}; "
        "95 % intervals (sites: by patient)",
        caption=verdict(results),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="",
    )
    table.add_column("site", no_wrap=True, max_width=_NAME)
    for model in models:
        table.add_column(_COLUMNS[model], justify="right", no_wrap=True)
    table.add_column(_heading(comparison), max_width=_LAST)
    for row in read(results, comparison).rows:
        site = results.sites[row.site]
        below = f"{site.kind}, {thousands(site.pairs)} pairs" if site.pairs else site.kind
        table.add_row(
            _lines(short(row.site, _NAME), below),
            *[_level(site.metrics.get(model, {}).get(metric)) for model in models],
            _difference(results, row.estimate) if row.estimate else Text(row.why, "dim"),
        )
    if models:
        table.add_section()
        _add_mean(table, results, models, comparison)
        _add_worst(table, results, models, comparison)
    return table


def _add_mean(table: Table, results: Results, models: list[Model], comparison: Comparison) -> None:
    metric, mean = results.main_metric, results.mean
    table.add_row(
        _lines("mean of sites", "each counts once", "bold"),
        *[_level(mean.metrics[model][metric]) for model in models],
        _pooled(results, comparison),
    )


def _add_worst(table: Table, results: Results, models: list[Model], comparison: Comparison) -> None:
    metric, worst = results.main_metric, results.worst
    cells = [
        _lines(
            number(worst.metrics[model][metric].value),
            short(results.worst_site[model][metric], _OWNER),
        )
        for model in models
    ]
    lowest = worst.differences.get(comparison, {}).get(metric)
    table.add_row(
        _lines("worst site", "of each column", "bold"), *cells, _difference(results, lowest)
    )


def _pooled(results: Results, comparison: Comparison) -> Text:
    """Return the report's mean of sites (random effects), so that both say the same."""
    found = [row.estimate for row in read(results, comparison).rows if row.estimate]
    mean = pool(found)
    if mean is None:
        return Text("too few sites", "dim")
    return _difference(
        results, Estimate(value=mean.value, low=mean.low, high=mean.high, n=mean.sites)
    )


def _heading(comparison: Comparison) -> str:
    first, second = comparison.split("_minus_")
    return f"{first} \u2212 {second}"


def _lines(first: str, second: str, style: str = "") -> Text:
    """Return two lines, the second one dim; names are text, never markup."""
    return Text.assemble((first, style), "\n", (second, "dim"))


def _level(entry: Estimate | None) -> Text:
    if entry is None:
        return Text("\u00b7", "dim")
    # Levels have no sign, so a dash cannot be misread here.
    return _lines(number(entry.value), f"{entry.low:.2f}\u2013{entry.high:.2f}")


def _difference(results: Results, entry: Estimate | None) -> Text:
    if entry is None:
        return Text("")
    lower = METRICS[results.main_metric].direction == "lower"
    word = reading(entry, margin=results.margin, lower_is_better=lower)
    ends = [number(end, signed=True) for end in (entry.low, entry.high)]
    return Text.assemble(
        f"{number(entry.value, signed=True)} ",
        (word, _STYLES[word]),
        "\n",
        (" to ".join(ends), "dim"),
    )
