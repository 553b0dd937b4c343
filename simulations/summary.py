"""Mean over sites, and the worst site.

Mean over sites: the mean of the sites' values, every site weighing the same. Sites are
independent, so its variance is the sum of the sites' variances over n squared, each taken from
the width of the site's own interval as if that were normal; the 95 % interval is the mean plus
or minus 1.96 standard errors, kept within what the metric can be. It says how well the mean *of
these sites* is known; how a new site would fare is the report's random-effects interval. With
one site the mean is that site, interval and all.
"""

import math
from collections.abc import Mapping, Sequence

from shared.metrics import METRICS as INFO
from shared.results import (
    COMPARISONS,
    METRICS,
    MODELS,
    Comparison,
    Estimate,
    Metric,
    Model,
    SiteResult,
    Summary,
)

_Z = 1.959963984540054


def mean_of(sites: Mapping[str, SiteResult]) -> Summary:
    """Return the mean over sites of every metric and difference; ``n`` is the sites in it."""
    metrics: dict[Model, dict[Metric, Estimate]] = {}
    differences: dict[Comparison, dict[Metric, Estimate]] = {}
    for model in MODELS:
        rows = _by_metric([site.metrics.get(model, {}) for site in sites.values()])
        if rows:
            metrics[model] = {metric: mean_estimate(found, 0.0) for metric, found in rows.items()}
    for comparison in COMPARISONS:
        rows = _by_metric([site.differences.get(comparison, {}) for site in sites.values()])
        if rows:
            differences[comparison] = {m: mean_estimate(found, -1.0) for m, found in rows.items()}
    return Summary(metrics=metrics, differences=differences)


def mean_estimate(rows: Sequence[Estimate], least: float) -> Estimate:
    """Return the mean of independent estimates; see the module's docstring.

    Args:
        rows: At least one estimate.
        least: Lowest possible value, 0 for levels and -1 for differences; the highest is 1.
    """
    count = len(rows)
    if count == 1:
        return rows[0].model_copy(update={"n": 1})
    value = math.fsum(row.value for row in rows) / count
    variances = [((row.high - row.low) / (2 * _Z)) ** 2 for row in rows]
    half = _Z * math.sqrt(math.fsum(variances)) / count
    return Estimate(value=value, low=max(least, value - half), high=min(1.0, value + half), n=count)


def worst_of(
    sites: Mapping[str, SiteResult],
) -> tuple[Summary, dict[Model, dict[Metric, str]]]:
    """Return the worst site's value of every metric and difference, and whose it is.

    The interval is the site's own; that of a minimum over sites would be wider, so it is to be
    read as "this site", not as "the worst of all". Ties go to the first name.
    """
    metrics: dict[Model, dict[Metric, Estimate]] = {}
    names: dict[Model, dict[Metric, str]] = {}
    for model in MODELS:
        found = _worst({name: site.metrics.get(model, {}) for name, site in sites.items()})
        if found:
            metrics[model] = {metric: entry for metric, (_, entry) in found.items()}
            names[model] = {metric: name for metric, (name, _) in found.items()}
    differences: dict[Comparison, dict[Metric, Estimate]] = {}
    for comparison in COMPARISONS:
        found = _worst({n: site.differences.get(comparison, {}) for n, site in sites.items()})
        if found:
            differences[comparison] = {metric: entry for metric, (_, entry) in found.items()}
    return Summary(metrics=metrics, differences=differences), names


def _worst(tables: Mapping[str, Mapping[Metric, Estimate]]) -> dict[Metric, tuple[str, Estimate]]:
    result: dict[Metric, tuple[str, Estimate]] = {}
    for metric in METRICS:
        sign = 1 if INFO[metric].direction == "higher" else -1
        rows = [(name, table[metric]) for name, table in sorted(tables.items()) if metric in table]
        if rows:
            result[metric] = min(rows, key=lambda row: sign * row[1].value)
    return result


def _by_metric(tables: Sequence[Mapping[Metric, Estimate]]) -> dict[Metric, list[Estimate]]:
    rows = {metric: [t[metric] for t in tables if metric in t] for metric in METRICS}
    return {metric: found for metric, found in rows.items() if found}
