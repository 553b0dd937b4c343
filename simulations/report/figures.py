"""Figures 1 to 4 and Tables 1 and 2: readings turned into rows of marks and text."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from shared.page import charts, marks
from shared.page.marks import Scale, nice_scale
from shared.page.numbers import interval, number, short
from shared.results import Comparison, Estimate, Metric, Model, Results, SiteResult
from simulations.report.disclosure import counter
from simulations.report.pooling import Pooled, pool
from simulations.report.readings import (
    Readings,
    SiteReading,
    calibration_error,
    model_in_use,
    ordered,
    read,
    score_in_use,
    test_patients,
    why_no_level,
)
from simulations.report.words import COMPARISONS, KINDS, METRICS, NAMES, SERIES

CONTEXT_ROWS = 12  # with more sites the mean stands above the rows, so that it is seen first
I2T: tuple[Metric, ...] = ("i2t_r1", "i2t_r5", "i2t_r10")
T2I: tuple[Metric, ...] = ("t2i_r1", "t2i_r5", "t2i_r10")


@dataclass(frozen=True)
class Head:
    """A site as a row header: id of its card, name as shown, full name, what it is."""

    key: str
    name: str
    full: str
    what: str


@dataclass(frozen=True)
class EffectCell:
    """One difference: drawing, numbers and word, or a sentence."""

    strip: Markup | None
    numbers: str = ""
    word: str = ""
    none: str = ""


@dataclass(frozen=True)
class Column:
    """One forest: a cell per site in page order, the mean, the axis."""

    label: str
    cells: tuple[EffectCell, ...]
    mean: EffectCell | None
    axis: Markup


@dataclass(frozen=True)
class LevelRow:
    """One site in Figure 2: lanes or a sentence, then what is in use with its score."""

    head: Head
    strip: Markup | None
    spoken: str
    none: str
    use: str
    score: str


def heads(results: Results) -> dict[str, Head]:
    """Return the row header of every site, in page order; ids are unique and harmless."""
    out: dict[str, Head] = {}
    taken: set[str] = set()
    for name in ordered(results):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "site"
        key, more = slug, 2
        while key in taken:
            key, more = f"{slug}-{more}", more + 1
        taken.add(key)
        site = results.sites[name]
        out[name] = Head(key, short(name), name, short(site.description or KINDS[site.kind], 32))
    return out


def _half(row: Estimate) -> float:
    return (row.high - row.low) / 2


def effect_scale(rows: Sequence[Estimate], mean: Pooled | None) -> Scale:
    """Return an axis with every estimate, the mean, zero, and all but outstandingly wide ends."""
    ends = [0.0] + [row.value for row in rows]
    usual = 3 * median(_half(row) for row in rows) if rows else 0.0
    ends += [end for row in rows if _half(row) <= usual for end in (row.low, row.high)]
    if mean is not None:
        ends += [mean.low, mean.high, *(mean.new or ())]
    if max(ends) - min(ends) < 1e-6:
        ends += [-0.05, 0.05]
    return nice_scale(min(ends), max(ends), most=5, signed=True)


def forest(results: Results, comparison: Comparison) -> Column:
    """Return one comparison as a forest plot over all sites."""
    readings, words = read(results, comparison), COMPARISONS[comparison]
    mean = pool(readings.measured)
    scale = effect_scale(readings.measured, mean)
    narrowest = min((h for row in readings.measured if (h := _half(row)) > 0), default=0.0)
    cells = tuple(_effect(row, scale, words.series, narrowest) for row in readings.rows)
    better = "is better" if not METRICS[results.main_metric].lower_is_better else "has more errors"
    left = f"{words.left} {better}" if words.left == "alone" else words.left
    axis = marks.axis(scale, left, f"{words.right} {better}") if readings.measured else Markup("")
    label = (
        f"{words.new[0].upper()}{words.new[1:].removesuffix(' adapter')} minus {_old(comparison)}"
    )
    return Column(label, cells, _mean(mean, scale), axis)


def _old(comparison: Comparison) -> str:
    return {"local": "local-only"}.get(old := comparison.split("_minus_")[1], old)


def _effect(row: SiteReading, scale: Scale, series: Model, narrowest: float) -> EffectCell:
    if row.estimate is None:
        return EffectCell(None, none=f"Not measured: {row.why}")
    half = _half(row.estimate)
    precision = narrowest / half if half > 0 else 0.0
    quiet = row.word == "within noise"
    strip = charts.effect(row.estimate, scale, series, precision, quiet=quiet)
    return EffectCell(strip, interval(row.estimate, signed=True), row.word or "")


def _mean(mean: Pooled | None, scale: Scale) -> EffectCell | None:
    if mean is None:
        return None
    new = ""
    if mean.new is not None:
        low, high = (number(end, 2, signed=True) for end in mean.new)
        new = f"new site: {low} to {high}"
    strip = charts.summary(mean, scale, mean.new)
    return EffectCell(strip, interval(mean, signed=True), new)


def no_mean(readings: Readings) -> str:
    """Return the sentence that stands for the summary row of a run with few sites."""
    count = len(readings.measured)
    if count == 0:
        return ""
    sites = "One site was" if count == 1 else "Two sites were"
    return f"{sites} measured; a mean of sites is shown from three on." if count < 3 else ""


def lanes(results: Results) -> list[Model]:
    """Return the models that were scored at any site, in the order of the lanes."""
    metric = results.main_metric
    return [m for m in SERIES if any(metric in _rows(s, m) for s in results.sites.values())]


def _rows(site: SiteResult, model: Model) -> dict[Metric, Estimate]:
    return site.metrics.get(model, {})


def level_scale(rows: Iterable[Estimate], metric: Metric) -> Scale:
    """Return an axis from chance (or zero) to a little above the highest interval."""
    known = list(rows)
    floor = METRICS[metric].chance or 0.0
    top = max((row.high for row in known), default=1.0)
    low = min((row.low for row in known), default=floor)
    if low < floor:
        low = nice_scale(low, floor + 0.1).low
        return nice_scale(
            max(0.0, low), max(top, floor + 0.1), most=5, floor=max(0.0, low), ceiling=1
        )
    return nice_scale(floor, max(top, floor + 0.05), most=5, floor=floor, ceiling=1.0)


def _levels_of(site: SiteResult, metric: Metric, models: Sequence[Model]) -> dict[str, Estimate]:
    return {m: _rows(site, m)[metric] for m in models if metric in _rows(site, m)}


def level(row: Estimate) -> str:
    """Return a level with its interval; one patient has none."""
    if row.n < 2:
        return f"{number(row.value, 2)}, one patient, no interval"
    return interval(row, 2)


def level_rows(results: Results, models: Sequence[Model]) -> tuple[list[LevelRow], Markup, float]:
    """Return the rows and the axis of Figure 2, and where the axis starts."""
    metric, label = results.main_metric, METRICS[results.main_metric].label
    values = {n: _levels_of(s, metric, models) for n, s in results.sites.items()}
    scale = level_scale((row for rows in values.values() for row in rows.values()), metric)
    chance, rows = METRICS[metric].chance, []
    dashed = chance if chance is not None and scale.low < chance else None
    for name, head in heads(results).items():
        site, here = results.sites[name], values[name]
        score, model = score_in_use(results, site), model_in_use(site)
        rows.append(
            LevelRow(
                head,
                charts.levels(here, scale, models, dashed) if here else None,
                "; ".join(f"{NAMES[m]} {number(here[m].value, 2)}" for m in models if m in here),
                "" if here else f"Not measured: {why_no_level(results, site)}",
                "; ".join(f"{tower}: {use}" for tower, use in site.in_use.items())
                or "not recorded",
                f"{label} {level(score)}" if score and model else "",
            )
        )
    return rows, marks.axis(scale), scale.low


@dataclass(frozen=True)
class TableRow:
    """A row of a plain table: site, cells, or one sentence over all cells."""

    site: str
    cells: tuple[str, ...] = ()
    none: str = ""


def level_table(results: Results) -> tuple[list[str], list[TableRow]]:
    """Return columns and rows of Table 1: every model in the main measure, calibration error."""
    metric, show = results.main_metric, counter(results)
    models = [m for m in NAMES if any(metric in _rows(s, m) for s in results.sites.values())]
    columns = ["Test patients", *(NAMES[m] for m in models), "Calibration error, model in use"]
    rows = []
    for name in ordered(results):
        site, patients = results.sites[name], test_patients(results.sites[name])
        here = _levels_of(site, metric, models)
        none = "no test split" if site.splits else "not told"
        count = show(patients) if patients else none
        if not here:
            rows.append(TableRow(name, (count,), f"Not measured: {why_no_level(results, site)}"))
            continue
        error = calibration_error(site)
        cells = [level(here[m]) if m in here else "Not measured" for m in models]
        cells.append(level(error) if error else f"Not measured: {_why_ece(site)}")
        rows.append(TableRow(name, (count, *cells)))
    return columns, rows


def _why_ece(site: SiteResult) -> str:
    return site.not_measured.get("ece", "no probabilities to check")


@dataclass(frozen=True)
class RetrievalRow:
    """One site in Figure 4: both directions, and how many choices there were."""

    head: Head
    strips: tuple[Markup, Markup]
    spoken: tuple[str, str]
    choices: str


def retrieval_sites(results: Results) -> list[str]:
    """Return the sites that were scored by retrieval in both directions."""
    return [
        name
        for name in ordered(results)
        if any({"i2t_r5", "t2i_r5"} <= rows.keys() for rows in results.sites[name].metrics.values())
    ]


def retrieval_rows(results: Results) -> tuple[list[RetrievalRow], list[Model], Markup]:
    """Return the rows of Figure 4, the models that were scored, and the axis."""
    sites, show = retrieval_sites(results), counter(results)
    every = [_rows(results.sites[n], m) for n in sites for m in SERIES]
    scale = level_scale((r[k] for r in every for k in ("i2t_r5", "t2i_r5") if k in r), "r5")
    models = [m for m in SERIES if any("i2t_r5" in _rows(results.sites[n], m) for n in sites)]
    known, rows = heads(results), []
    for name in sites:
        site = results.sites[name]
        both = [_levels_of(site, metric, models) for metric in ("i2t_r5", "t2i_r5")]
        strips = [charts.levels(values, scale, models) for values in both]
        spoken = [
            "; ".join(f"{NAMES[m]} {number(v[m].value, 2)}" for m in models if m in v) for v in both
        ]
        texts, images = show(site.gallery_texts), show(site.gallery_images)
        choices = f"{texts} texts; {images} images"
        rows.append(
            RetrievalRow(known[name], (strips[0], strips[1]), (spoken[0], spoken[1]), choices)
        )
    return rows, models, marks.axis(scale)


def retrieval_table(results: Results, models: Sequence[Model]) -> list[TableRow]:
    """Return the rows of Table 2: R@1, R@5 and R@10 in both directions."""
    rows = []
    for name in retrieval_sites(results):
        for words, metrics in (("picture to report", I2T), ("report to picture", T2I)):
            for metric in metrics:
                here = _levels_of(results.sites[name], metric, models)
                cells = [level(here[m]) if m in here else "Not measured" for m in models]
                rows.append(TableRow(name, (words, METRICS[metric].label, *cells)))
    return rows


def not_retrieved(results: Results) -> list[tuple[str, str]]:
    """Return the sites without a retrieval score, each with the reason."""
    scored = retrieval_sites(results)
    return [
        (short(name), results.sites[name].not_measured.get("r5", "no score recorded"))
        for name in ordered(results)
        if name not in scored
    ]
