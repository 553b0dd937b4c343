"""What may be printed: the minimum-count rule, and who may see pictures.

A simulation on phantom or public data shows exact counts. Everywhere else a count under 20
is printed as "under 20", a larger one is rounded to 10, and an estimate or calibration bin
that rests on fewer than 20 is left out, because its value would give the count away. The
rule holds for the numbers inside the file too.
"""

import json
import math
from collections.abc import Callable

from shared.page.numbers import thousands
from shared.results import (
    CalibrationBin,
    Estimate,
    FindingScore,
    Metric,
    Model,
    Results,
    SiteResult,
    Summary,
)
from simulations.report.words import MINIMUM_COUNT

UNDER = f"under {MINIMUM_COUNT}"
WITHHELD = f"withheld, {UNDER} test patients"
_COUNTS = frozenset(
    {"n", "images", "texts", "pairs", "patients", "positives", "gallery_texts", "gallery_images"}
)

Counter = Callable[[int], str]


def exact(results: Results) -> bool:
    """Whether exact counts may be printed."""
    simulated = results.engine in ("local", "flower")
    return simulated and results.origin.origin in ("phantom", "public")


def pictures_allowed(results: Results) -> bool:
    """Whether pictures and query texts may enter the page; no by default."""
    origin = results.origin
    return origin.origin == "phantom" or (origin.origin == "public" and bool(origin.licence))


def coarse(count: int) -> int | str:
    """Return a count as the rule allows it: ``"under 20"``, or rounded to 10; none stays 0."""
    if 0 < count < MINIMUM_COUNT:
        return UNDER
    return (count + 5) // 10 * 10


def counter(results: Results) -> Counter:
    """Return the function that prints a count of records or patients."""

    def show(count: int) -> str:
        allowed = count if exact(results) else coarse(count)
        return allowed if isinstance(allowed, str) else thousands(allowed)

    return show


def released(results: Results) -> Results:
    """Return the results without anything that the rules forbid to print."""
    out: dict[str, object] = {}
    if not pictures_allowed(results):
        ranks = [q.model_copy(update={"text": "", "found": {}}) for q in results.gallery]
        out |= {"gallery": ranks, "pictures": {}}
    if not exact(results):
        sites = {name: _released_site(site) for name, site in results.sites.items()}
        out["sites"] = sites
        if any(sites[name].metrics != site.metrics for name, site in results.sites.items()):
            # A mean over all sites minus the shown ones would be the withheld one.
            out |= {"mean": Summary(metrics={}), "worst": Summary(metrics={}), "worst_site": {}}
    return results.model_copy(update=out)


def _released_site(site: SiteResult) -> SiteResult:
    metrics = {model: _enough(rows) for model, rows in site.metrics.items()}
    hidden: set[Metric] = {
        metric for model, rows in site.metrics.items() for metric in rows.keys() - metrics[model]
    }
    return site.model_copy(
        update={
            "metrics": metrics,
            "differences": {key: _enough(rows) for key, rows in site.differences.items()},
            "not_measured": {**site.not_measured, **dict.fromkeys(hidden, WITHHELD)},
            "findings": [kept for kept in map(_released_finding, site.findings) if kept.auroc],
            "calibration": [b for b in site.calibration if _bin_is_large(b)],
        }
    )


def _enough(rows: dict[Metric, Estimate]) -> dict[Metric, Estimate]:
    return {metric: row for metric, row in rows.items() if row.n >= MINIMUM_COUNT}


def _released_finding(finding: FindingScore) -> FindingScore:
    kept: dict[Model, Estimate] = {
        model: row
        for model, row in finding.auroc.items()
        if min(finding.positives, row.n - finding.positives) >= MINIMUM_COUNT
    }
    return finding.model_copy(update={"auroc": kept})


def _bin_is_large(row: CalibrationBin) -> bool:
    return row.n >= MINIMUM_COUNT


def embedded(results: Results) -> str:
    """Return released results as JSON for a script element, six digits a number.

    Pictures stand on the page itself. ``<`` is escaped, so no text can end the element.
    """
    data = results.model_dump(mode="json", exclude={"pictures"}, exclude_none=True)
    mean = data.pop("mean")  # its n counts sites
    data = _filtered(data, coarsely=not exact(results))
    data["mean"] = _filtered(mean, coarsely=False)
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _filtered(value: object, *, coarsely: bool) -> "dict[str, object]":
    filtered = _filter(value, coarsely)
    if not isinstance(filtered, dict):
        raise TypeError("results are one object")
    return filtered


def _filter(value: object, coarsely: bool) -> object:
    if isinstance(value, dict):
        return {
            key: coarse(item)
            if coarsely and key in _COUNTS and isinstance(item, int)
            else _filter(item, coarsely)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_filter(item, coarsely) for item in value]
    if isinstance(value, float):
        # A number that is not finite has no place in JSON.
        return float(f"{value:.6g}") if math.isfinite(value) else "not finite"
    return value
