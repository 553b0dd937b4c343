"""One card per site, written from its numbers, so that a hospital can read its own alone."""

from dataclasses import dataclass

from shared.page.numbers import interval, plural, short
from shared.results import Comparison, ParticipationState, Results, SiteResult
from simulations.report.disclosure import counter
from simulations.report.privacy import CLAIM, site_claim
from simulations.report.readings import (
    SiteReading,
    admitted,
    asked,
    calibration_error,
    lost_in,
    main_comparison,
    read,
    test_patients,
)
from simulations.report.words import (
    COMPARISONS,
    FEW_PATIENTS,
    KINDS,
    POOR_CALIBRATION,
    WITHOUT_SHARED_MODEL,
)

EXCEPTIONS: tuple[ParticipationState, ...] = ("late", "missing", "refused")


@dataclass(frozen=True)
class Story:
    """The card of one site: a verdict with what to do, then lines in a fixed order."""

    words: str
    lines: tuple[str, ...]


def find(results: Results, comparison: Comparison, name: str) -> SiteReading:
    """Return one site's reading of a comparison."""
    return next(row for row in read(results, comparison).rows if row.site == name)


def story(results: Results, name: str) -> Story:
    """Return the card of one site."""
    site = results.sites[name]
    main = main_comparison(results)
    row = find(results, main, name)
    return Story(
        f"{_outcome(results, site, row)} {_use(results, name, row)}".strip(),
        (
            _against(results, name, main),
            _against(results, name, _beside_alone(results)),
            _calibration(site),
            _rounds(site),
            _privacy(results, name),
        ),
    )


def _privacy(results: Results, name: str) -> str:
    found = site_claim(results, name)
    return "Privacy: no differential privacy, no claim." if found == CLAIM else f"Privacy: {found}."


def _beside_alone(results: Results) -> Comparison:
    """Return the second comparison of a site's card; without a shared model, with the base."""
    own = results.aggregation.rule in WITHOUT_SHARED_MODEL
    return "personal_minus_base" if own else "personal_minus_shared"


def _outcome(results: Results, site: SiteResult, row: SiteReading) -> str:
    words = COMPARISONS[main_comparison(results)]
    joining = "Joining" if words.left == "alone" else f"The {words.new}"
    if row.estimate is None:
        return (
            f"This site took part with {KINDS[site.kind]}. "
            f"Its benefit could not be measured: {row.why}."
        )
    if row.word == "better":
        return f"{joining} helped."
    if row.word == "worse":
        return f"{joining} was worse here than {words.old.replace('the same site ', '')}."
    if test_patients(site) < FEW_PATIENTS:
        few = counter(results)(test_patients(site))
        return f"No clear answer: {few} test patients are too few to tell the two apart."
    return f"The difference to {words.old.replace('the same site ', '')} is within noise."


def _use(results: Results, name: str, row: SiteReading) -> str:
    """Return which adapter is in use and what to do; these are the only actions there are."""
    site = results.sites[name]
    chosen = [use for use in site.in_use.values() if use != "not trained"]
    actions, state = [], ""
    if chosen and all(use == "personal" for use in chosen):
        if row.word == "better":
            actions.append("use the personal adapter")
        else:
            state = "The personal adapter is in use. "
    elif "personal" in chosen:
        towers = [tower for tower, use in site.in_use.items() if use == "personal"]
        state = f"The personal adapter is in use for {' and '.join(f'{t}s' for t in towers)}. "
    elif chosen:
        state = "The shared adapter is in use. "
    error = calibration_error(site)
    if error and error.value > POOR_CALIBRATION:
        actions.append("recalibrate before any threshold is chosen")
    if name in lost_in(results, results.rounds):
        actions.append("repeat the last round")
    todo = (
        ", and ".join(actions)
        if len(actions) < 3
        else f"{actions[0]}, {actions[1]}, and {actions[2]}"
    )
    return state + (f"{todo[0].upper()}{todo[1:]}." if todo else "")


def _against(results: Results, name: str, comparison: Comparison) -> str:
    words = COMPARISONS[comparison]
    label = f"{words.new.split()[0].capitalize()} against {words.old.replace('the same site ', '')}"
    label = label.replace("the shared adapter", "shared")
    row = find(results, comparison, name)
    if row.estimate is None:
        return f"{label}: not measured, {row.why}."
    return f"{label}: {interval(row.estimate, signed=True)}, {row.word}."


def _calibration(site: SiteResult) -> str:
    error = calibration_error(site)
    if error is None:
        return f"Calibration: not measured, {site.not_measured.get('ece', 'no scores to check')}."
    poor = ": scores are not risks here." if error.value > POOR_CALIBRATION else "."
    return f"Calibration error {interval(error, 2)}{poor}"


def extras(site: SiteResult) -> list[str]:
    """Return ``["3 late", "2 missing"]``."""
    states = [cell.state for cell in site.participation]
    return [f"{states.count(s)} {s}" for s in EXCEPTIONS if s in states]


def _rounds(site: SiteResult) -> str:
    if not asked(site):
        return "Not asked in any round."
    more = extras(site)
    ending = f": {', '.join(more)}." if more else "."
    return f"Took part in {admitted(site)} of {plural(asked(site), 'round')} asked{ending}"


def title(name: str, site: SiteResult) -> tuple[str, str]:
    """Return the heading of a card: name and what the site is."""
    what = f"{site.description}, {KINDS[site.kind]}" if site.description else KINDS[site.kind]
    return short(name), what
