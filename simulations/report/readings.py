"""What the numbers say about each site: one order, one comparison, one word per difference."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.page.numbers import Reading, plural, reading
from shared.results import Comparison, Estimate, Metric, Model, Results, SiteResult
from simulations.report.words import (
    COMPARISONS,
    KIND_ORDER,
    LEAST_PATIENTS,
    MAIN_COMPARISONS,
    METRICS,
    NAMES,
)

LOST = ("missing", "refused")


@dataclass(frozen=True)
class SiteReading:
    """One difference at one site: an estimate with a word, or the reason why there is none."""

    site: str
    estimate: Estimate | None
    word: Reading | None
    why: str = ""


@dataclass(frozen=True)
class Readings:
    """One comparison over all sites, in the order of the page."""

    comparison: Comparison
    rows: tuple[SiteReading, ...]

    def named(self, word: Reading) -> list[str]:
        """Return the sites that got this word."""
        return [row.site for row in self.rows if row.word == word]

    @property
    def measured(self) -> list[Estimate]:
        """The estimates of the sites that could be measured."""
        return [row.estimate for row in self.rows if row.estimate is not None]

    @property
    def unmeasured(self) -> list[SiteReading]:
        """The sites that could not be measured."""
        return [row for row in self.rows if row.estimate is None]


def test_patients(site: SiteResult) -> int:
    """Return the patients of a site's test split; if it told no split, those that it scored."""
    if site.splits:
        return site.splits["test"].patients if "test" in site.splits else 0
    return max((row.n for rows in site.metrics.values() for row in rows.values()), default=0)


def ordered(results: Results) -> list[str]:
    """Return site names by kind, then test patients descending, then name; never by score."""
    return sorted(
        results.sites,
        key=lambda name: (
            KIND_ORDER.index(results.sites[name].kind),
            -test_patients(results.sites[name]),
            name,
        ),
    )


def main_comparison(results: Results) -> Comparison:
    """Return what joining is compared with: training alone if the run has it, else the base."""
    for comparison in MAIN_COMPARISONS:
        for site in results.sites.values():
            if results.main_metric in site.differences.get(comparison, {}):
                return comparison
    return "personal_minus_local"


def read(results: Results, comparison: Comparison, metric: Metric | None = None) -> Readings:
    """Return one comparison at every site, read in the main measure unless another is given."""
    metric = metric or results.main_metric
    rows = []
    for name in ordered(results):
        site = results.sites[name]
        estimate = site.differences.get(comparison, {}).get(metric)
        if estimate is None:
            rows.append(SiteReading(name, None, None, _why(results, site, comparison, metric)))
        elif estimate.n < LEAST_PATIENTS:
            patients = plural(estimate.n, "test patient")
            why = f"{patients}, at least {LEAST_PATIENTS} are needed for an interval"
            rows.append(SiteReading(name, None, None, why))
        else:
            word = reading(
                estimate,
                margin=results.margin,
                lower_is_better=METRICS[metric].lower_is_better,
            )
            rows.append(SiteReading(name, estimate, word))
    return Readings(comparison, tuple(rows))


def _why(results: Results, site: SiteResult, comparison: Comparison, metric: Metric) -> str:
    if metric in site.not_measured:
        return site.not_measured[metric]
    if not any(other.metrics for other in results.sites.values()):
        return "no model was scored in this run"
    sides: Sequence[Model] = [m for m in NAMES if m in comparison.split("_minus_")]
    for model in sides:
        if not any(model in other.metrics for other in results.sites.values()):
            return f"no {NAMES[model].lower()} model in this run"
    return f"the run recorded no {METRICS[metric].label} here"


def why_no_level(results: Results, site: SiteResult) -> str:
    """Return why a site has no score in the main measure."""
    metric = results.main_metric
    return site.not_measured.get(metric, f"the run recorded no {METRICS[metric].label} here")


def model_in_use(site: SiteResult) -> Model | None:
    """Return the model that the site ends up with: personal if there is one, else shared."""
    models: tuple[Model, ...] = ("personal", "shared")
    return next((model for model in models if site.metrics.get(model)), None)


def chosen_on_validation(results: Results) -> bool:
    """Whether each site's validation records decided which model is in use."""
    return results.personalization != "none" and results.personal_use == "if-better"


def score_in_use(results: Results, site: SiteResult) -> Estimate | None:
    """Return the main measure of the model in use."""
    model = model_in_use(site)
    return site.metrics[model].get(results.main_metric) if model else None


def calibration_error(site: SiteResult) -> Estimate | None:
    """Return the calibration error of the model whose bins are shown, or of the one in use."""
    model = site.calibrated_model or model_in_use(site)
    return site.metrics.get(model, {}).get("ece") if model else None


def lost_in(results: Results, round_: int) -> list[str]:
    """Return the sites that were asked in a round and whose contribution is not in it."""
    return [
        name
        for name in ordered(results)
        if 1 <= round_ <= len(cells := results.sites[name].participation)
        and cells[round_ - 1].state in LOST
    ]


def asked(site: SiteResult) -> int:
    """Return how often a site was asked to contribute."""
    return sum(cell.state != "idle" for cell in site.participation)


def admitted(site: SiteResult) -> int:
    """Return how many of its contributions were admitted."""
    return sum(cell.state in ("in", "late") for cell in site.participation)


def beside(comparison: Comparison) -> str:
    """Return ``personal adapter minus the same site training alone``."""
    words = COMPARISONS[comparison]
    return f"{words.new} minus {words.old}"
