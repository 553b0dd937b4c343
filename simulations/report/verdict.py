"""The verdict and the status of a run: pure functions of the results, no free text."""

from dataclasses import dataclass
from typing import Literal

from shared.page.numbers import listing, plural, short
from shared.results import Results
from simulations.report.readings import Readings, admitted, asked, lost_in, main_comparison, read
from simulations.report.words import COMPARISONS

Tone = Literal["good", "warn", "bad"]


@dataclass(frozen=True)
class Pill:
    """The status of a run in a few words, with its colour."""

    words: str
    tone: Tone


def missing_contributions(results: Results) -> int:
    """Return how many contributions were asked for and not admitted."""
    return sum(asked(site) - admitted(site) for site in results.sites.values())


def pill(results: Results) -> Pill:
    """Return the status; only a run with every asked contribution of every round is green."""
    if results.status == "failed":
        return Pill(f"Failed in round {results.rounds + 1}", "bad")
    if results.status == "stopped":
        return Pill(f"Stopped after round {results.rounds}", "bad")
    missing = missing_contributions(results)
    if results.status == "finished" and missing == 0:
        return Pill("Finished with every site", "good")
    lost = lost_in(results, results.rounds)
    if lost:
        more = f" and {plural(len(lost) - 1, 'more site')}" if len(lost) > 1 else ""
        return Pill(f"Finished without {short(lost[0])}{more} in the last round", "warn")
    if missing:
        return Pill(f"Finished, {plural(missing, 'contribution')} missing", "warn")
    return Pill("Finished, contributions missing", "warn")


def verdict(results: Results) -> str:
    """Return the one sentence on top of the page."""
    readings = read(results, main_comparison(results))
    if not readings.measured:
        return _unmeasured(results, readings)
    better, worse, noise = (readings.named(w) for w in ("better", "worse", "within noise"))
    subject = _subject(readings)
    count = len(readings.measured)
    of = f"of the {count} sites that could be measured"
    within = f"At {len(noise)} the difference is within noise"
    if worse:
        # The sites that lost come first, by name.
        names = listing([short(name) for name in worse], 3)
        helped = f"it helped {len(better) or 'none'} {of}"
        helped = "no other site could be measured" if count == 1 else helped
        return f"{subject} was worse at {names}; {helped}." + (f" {within}." if noise else "")
    if not better:
        where = "the only site measured" if count == 1 else f"any of {count} sites"
        return f"{subject} made no measurable difference at {where}."
    if count == 1:
        return f"{subject} helped the only site that could be measured."
    ending = f"{within}; at none was it worse." if noise else "At none was it worse."
    return f"{subject} helped {len(better)} {of}. {ending}"


def _subject(readings: Readings) -> str:
    """Return "Joining", or what stands for it where no site trained alone."""
    words = COMPARISONS[readings.comparison]
    if readings.comparison == "personal_minus_local":
        return "Joining"
    if words.left == "alone":
        return f"Joining, with the {words.new},"
    return f"Over {words.old}, the {words.new}"


def _unmeasured(results: Results, readings: Readings) -> str:
    """Return the verdict of a run without any comparison, with the reason."""
    happened = {
        "failed": f"The run failed in round {results.rounds + 1}",
        "stopped": f"The run was stopped after round {results.rounds}",
    }.get(results.status, "The run finished")
    reasons = dict.fromkeys(row.why for row in readings.rows)
    if results.reason and results.status in ("failed", "stopped"):
        because = results.reason.rstrip(". ")
    elif len(reasons) == 1:
        because = f"every site says: {next(iter(reasons))}"
    else:
        because = "no site could be compared; each site below says why"
    return f"{happened}; nothing could be measured, because {because}."
