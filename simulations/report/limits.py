"""What to distrust: rules over the results, one small function each.

Three levels: *affects the result*, *read with care*, *for information*. A rule returns at most
one limit and names the sites. Rules on spent privacy and on rehearsed attacks need results
that this version does not produce; until then the page states that both are absent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shared.page.numbers import interval, listing, number, plural, ranges, short
from shared.results import Comparison, Results
from simulations.report.disclosure import UNDER, counter
from simulations.report.pooling import pool
from simulations.report.privacy import for_sites, promised
from simulations.report.readings import (
    LOST,
    calibration_error,
    chosen_on_validation,
    lost_in,
    main_comparison,
    ordered,
    read,
    test_patients,
)
from simulations.report.words import (
    FEW_PATIENTS,
    MINIMUM_COUNT,
    POOR_CALIBRATION,
    WITHOUT_SHARED_MODEL,
)

Level = Literal["affects the result", "read with care", "for information"]
LEVELS: tuple[Level, ...] = ("affects the result", "read with care", "for information")
SMALL_GALLERY = 100
_FIGURES: tuple[Comparison, ...] = ("shared_minus_base", "personal_minus_shared")
_WITHOUT_SHARED: tuple[Comparison, ...] = ("personal_minus_base", "personal_minus_local")


def comparisons_shown(results: Results) -> tuple[Comparison, ...]:
    """Return the comparisons of Figure 3: those with a shared model only if the rule makes one."""
    return _WITHOUT_SHARED if results.aggregation.rule in WITHOUT_SHARED_MODEL else _FIGURES


@dataclass(frozen=True)
class Limit:
    """One thing to distrust."""

    level: Level
    head: str
    words: str


Rule = Callable[[Results], Limit | None]


def _names(names: list[str], most: int = 3) -> str:
    return listing([short(name) for name in names], most)


def _at(names: list[str]) -> str:
    return f"{_names(names, 8)}."


def not_finished(results: Results) -> Limit | None:
    """The run failed or was stopped before its last round."""
    if results.status not in ("failed", "stopped"):
        return None
    why = f" Reason given: {results.reason.rstrip('. ')}." if results.reason else ""
    committed = f"{results.rounds} of {plural(results.rounds_planned, 'round')} were committed."
    return Limit("affects the result", "The run did not reach its last round.", committed + why)


def not_in_last_round(results: Results) -> Limit | None:
    """A site's contribution is not in the last committed round."""
    names = lost_in(results, results.rounds)
    if not names:
        return None
    verb = "is" if len(names) == 1 else "are"
    return Limit(
        "affects the result",
        f"{_names(names)} {verb} not in the last round.",
        "The final shared adapter holds earlier rounds of their data only. "
        "Repeating the last round would bring them in.",
    )


def contribution_lost(results: Results) -> Limit | None:
    """A contribution was missing or refused in an earlier round."""
    rounds, names = set(), []
    for name in ordered(results):
        cells = results.sites[name].participation
        lost = {r for r, cell in enumerate(cells, 1) if cell.state in LOST and r < results.rounds}
        rounds |= lost
        names += [name] if lost else []
    if not names:
        return None
    where = f"Round{'s' if len(rounds) > 1 else ''} {ranges(sorted(rounds))}: {_at(names)}"
    return Limit(
        "affects the result", f"{plural(len(rounds), 'earlier round')} lost a contribution.", where
    )


def poorly_calibrated(results: Results) -> Limit | None:
    """The calibration error of a site is above 0.08."""
    poor = {
        name: error
        for name in ordered(results)
        if (error := calibration_error(results.sites[name])) and error.value > POOR_CALIBRATION
    }
    if not poor:
        return None
    values = listing([f"{short(n)} {number(e.value, 2)}" for n, e in poor.items()], 8)
    return Limit(
        "affects the result",
        f"At {_names(list(poor), 2)}, scores are not probabilities.",
        f"Calibration error: {values}. Ranking is usable; recalibrate before any threshold.",
    )


def few_patients(results: Results) -> Limit | None:
    """A measured site has fewer than 150 test patients."""
    measured = {row.site for row in read(results, main_comparison(results)).rows if row.estimate}
    few = [
        name
        for name in ordered(results)
        if name in measured and test_patients(results.sites[name]) < FEW_PATIENTS
    ]
    if not few:
        return None
    show = counter(results)
    values = listing([f"{short(n)} {show(test_patients(results.sites[n]))}" for n in few], 8)
    have = "has" if len(few) == 1 else "have"
    return Limit(
        "read with care",
        f"{_names(few, 2)} {have} fewer than {FEW_PATIENTS} test patients.",
        f"Test patients: {values}. Intervals that wide can hardly confirm or refute a gain.",
    )


def wide_interval(results: Results) -> Limit | None:
    """An interval is wider than four times the mean gain."""
    readings = read(results, main_comparison(results))
    mean = pool(readings.measured)
    if mean is None:
        return None
    wide = [
        row.site
        for row in readings.rows
        if row.estimate and row.estimate.high - row.estimate.low > 4 * abs(mean.value)
    ]
    if not wide:
        return None
    return Limit(
        "read with care",
        f"Intervals at {plural(len(wide), 'site')} are wide against the mean gain.",
        f"Wider than four times the mean difference of {interval(mean, signed=True)}: {_at(wide)}",
    )


def personal_within_noise(results: Results) -> Limit | None:
    """Personal over shared is within noise at half of the measured sites or more."""
    readings = read(results, "personal_minus_shared")
    noise, count = readings.named("within noise"), len(readings.measured)
    if not count or 2 * len(noise) < count:
        return None
    why = "The personal adapter is in use wherever there is one, because the job says so."
    if chosen_on_validation(results):
        why = "Where the personal adapter is in use, validation patients decided, not these."
    return Limit(
        "read with care",
        f"Personal over shared is within noise at {len(noise)} of {count} sites.",
        f"{_at(noise)} {why}",
    )


def not_measurable(results: Results) -> Limit | None:
    """A site took part and could not be measured."""
    rows = read(results, main_comparison(results)).unmeasured
    if not rows:
        return None
    reasons = listing([f"{short(row.site)}: {row.why}" for row in rows], 8)
    return Limit(
        "read with care",
        f"{_names([row.site for row in rows], 2)} could not be measured.",
        f"{reasons}. Their own benefit is unknown.",
    )


def withheld(results: Results) -> Limit | None:
    """Numbers of small groups are not printed."""
    names = [
        name
        for name in ordered(results)
        if any(UNDER in why for why in results.sites[name].not_measured.values())
    ]
    if not names:
        return None
    return Limit(
        "read with care",
        f"Scores that rest on {UNDER} patients are withheld.",
        f"{_at(names)} A count under {MINIMUM_COUNT} could point to a person.",
    )


def no_differential_privacy(results: Results) -> Limit | None:
    """Nothing bounds what an adapter reveals, unless every site promised its patients something."""
    if promised(results) and not for_sites(results):
        return None
    public = results.origin.origin in ("phantom", "public")
    level: Level = "for information" if public else "read with care"
    if for_sites(results):
        return Limit(
            level,
            "No differential privacy for patients: no claim.",
            "Noise hid whole sites from one another; sites trained without any.",
        )
    return Limit(
        level,
        "No differential privacy: no claim.",
        "What the adapters reveal about one patient was not bounded.",
    )


def no_rehearsal(results: Results) -> Limit | None:
    """No attack was rehearsed against the adapters."""
    public = results.origin.origin in ("phantom", "public")
    return Limit(
        "for information" if public else "read with care",
        "No attack was rehearsed.",
        "What an attacker could find out from the adapters was not tried.",
    )


def test_against_validation(results: Results) -> Limit | None:
    """Validation chose the model in use, and the test split is under twice its size."""
    if not chosen_on_validation(results):
        return None
    small = [
        name
        for name in ordered(results)
        if (splits := results.sites[name].splits).keys() >= {"val", "test"}
        and 0 < splits["test"].patients < 2 * splits["val"].patients
    ]
    if not small:
        return None
    return Limit(
        "read with care",
        f"Test is under twice the validation split at {plural(len(small), 'site')}.",
        f"{_at(small)} Validation chose the model in use; a small test split checks it weakly.",
    )


def intervals_shown(results: Results) -> int:
    """Return how many site intervals Figures 1 and 3 show."""
    comparisons = {main_comparison(results), *comparisons_shown(results)}
    return sum(len(read(results, c).measured) for c in comparisons)


def number_of_intervals(results: Results) -> Limit | None:
    """Many intervals were looked at."""
    shown = intervals_shown(results)
    chance = round(0.05 * shown)
    if chance == 0:
        return None
    about = "one" if chance == 1 else str(chance)
    return Limit(
        "for information",
        f"{shown} intervals were looked at.",
        f"About {about} would lie clear of zero by chance alone.",
    )


def no_baseline(results: Results) -> Limit | None:
    """The run has no local-only or no centralised model to compare with."""
    scored = {model for site in results.sites.values() for model in site.metrics}
    absent = [
        w for m, w in (("local", "local-only"), ("centralised", "centralised")) if m not in scored
    ]
    if not absent:
        return None
    gap = {
        "local-only": "Whether a site would do as well alone is unknown.",
        "centralised": "The gap to training on pooled data is unknown.",
    }
    return Limit(
        "read with care" if "local-only" in absent else "for information",
        f"No {' and no '.join(absent)} comparison.",
        " ".join(gap[word] for word in absent),
    )


def small_gallery(results: Results) -> Limit | None:
    """Retrieval among fewer than 100 texts is easy."""
    small = [
        name
        for name in ordered(results)
        if any(
            key.endswith(("r1", "r5", "r10"))
            for m in results.sites[name].metrics.values()
            for key in m
        )
        and results.sites[name].gallery_texts < SMALL_GALLERY
    ]
    if not small:
        return None
    return Limit(
        "for information",
        f"Retrieval chose among fewer than {SMALL_GALLERY} texts at {plural(len(small), 'site')}.",
        f"{_at(small)} Fewer choices make the task easier.",
    )


RULES: tuple[Rule, ...] = (
    not_finished,
    not_in_last_round,
    contribution_lost,
    poorly_calibrated,
    not_measurable,
    few_patients,
    wide_interval,
    personal_within_noise,
    test_against_validation,
    withheld,
    no_baseline,
    no_differential_privacy,
    no_rehearsal,
    number_of_intervals,
    small_gallery,
)


def limits(results: Results) -> list[Limit]:
    """Return every limit that applies, the gravest level first."""
    found = [limit for rule in RULES if (limit := rule(results)) is not None]
    return sorted(found, key=lambda limit: LEVELS.index(limit.level))
