"""The six questions of the first screen, each with one bold answer and a line or two."""

from dataclasses import dataclass

from shared.page.numbers import (
    decimals,
    duration,
    interval,
    listing,
    number,
    plural,
    ranges,
    short,
    size,
    thousands,
)
from shared.results import Comparison, Model, Results, SiteResult
from simulations.report.disclosure import counter
from simulations.report.limits import limits
from simulations.report.pooling import Pooled, pool
from simulations.report.privacy import claim_of, for_sites, promised
from simulations.report.readings import (
    admitted,
    asked,
    main_comparison,
    model_in_use,
    ordered,
    read,
    score_in_use,
    test_patients,
)
from simulations.report.words import COMPARISONS, FEW_PATIENTS, METRICS, NAMES

_SHOWN_LIMITS = 3


@dataclass(frozen=True)
class Answer:
    """One of the six answers: question, link, bold answer, detail or a list."""

    question: str
    target: str
    link: str
    bold: str
    detail: str = ""
    items: tuple[str, ...] = ()


def answers(results: Results) -> list[Answer]:
    """Return the six answers in their fixed order."""
    questions = (_did_it_work, _for_whom, _privacy, _cost, _who, _distrust)
    return [question(results) for question in questions]


def average(mean: Pooled | None, *, margin: float = 0.0, lower_is_better: bool = False) -> str:
    """Return what the mean of sites says; under the job's margin it says nothing."""
    if mean is None:
        return "Too few sites for an average."
    if mean.low <= 0 <= mean.high or abs(mean.value) < margin:
        return "No measurable difference on average."
    better = (mean.low > 0) != lower_is_better
    return "Yes, on average." if better else "No: worse on average."


def _did_it_work(results: Results) -> Answer:
    question = ("Did it work?", "results", "Results")
    main = main_comparison(results)
    readings = read(results, main)
    if not readings.measured:
        return Answer(*question, "Not known: nothing was compared.")
    words, metric = COMPARISONS[main], METRICS[results.main_metric]
    mean = pool(readings.measured)
    if mean is None:
        return Answer(
            *question,
            average(mean, margin=results.margin),
            f"{plural(len(readings.measured), 'site')} could be compared; an average needs three. "
            "Read each site by itself.",
        )
    new = words.new[0].upper() + words.new[1:]
    value, ends = interval(mean, signed=True).split(" (")
    old = words.old.replace("the same site ", "")
    detail = (
        f"{new}s score {value} {metric.label} over {old} "
        f"(95 % interval {ends}{_over_base(results, main)}."
    )
    word = average(mean, margin=results.margin, lower_is_better=metric.lower_is_better)
    return Answer(*question, word, detail)


def _over_base(results: Results, main: Comparison) -> str:
    """Return the gain over the untouched encoder as a second clause, where it was measured."""
    base: dict[Comparison, Comparison] = {
        "personal_minus_local": "personal_minus_base",
        "shared_minus_local": "shared_minus_base",
    }
    if main not in base:
        return ""
    mean = pool(read(results, base[main]).measured)
    if mean is None:
        return ""
    gain = number(mean.value, decimals(mean.low, mean.high, 3, signed=True), signed=True)
    return f" and {gain} over the untouched encoder"


def _for_whom(results: Results) -> Answer:
    readings = read(results, main_comparison(results))
    counts = ", ".join(f"{len(readings.named(w))} {w}" for w in ("better", "within noise", "worse"))
    unmeasured = len(readings.unmeasured)
    bold = counts + (f", {unmeasured} not measured" if unmeasured else "")
    if not readings.measured:
        bold = f"Not measured at {plural(unmeasured, 'site')}"
    return Answer("For whom?", "sites", "Each site", bold, _worst(results))


def _worst(results: Results) -> str:
    """Name the site with the lowest score of the model in use."""
    metric = METRICS[results.main_metric]
    scores = [
        (score.value, name, score)
        for name in ordered(results)
        if (score := score_in_use(results, results.sites[name])) is not None
    ]
    if not scores:
        return "No site has a score in the main measure."
    pick = max if metric.lower_is_better else min
    _, name, score = pick(scores, key=lambda row: row[0])
    site = results.sites[name]
    level = interval(score, 2) if score.n > 1 else number(score.value, 2)
    few = "only " if test_patients(site) < FEW_PATIENTS else ""
    model: Model = model_in_use(site) or "shared"
    end = "Highest" if metric.lower_is_better else "Lowest"
    patients = f"{few}{counter(results)(score.n)} test patient{'s' if score.n != 1 else ''}"
    return f"{end} {NAMES[model].lower()}: {short(name)}, {metric.label} {level}, on {patients}."


def _privacy(results: Results) -> Answer:
    if results.engine == "deployment":
        detail = "Adapter differences and scores left a site; what they reveal was not bounded."
    elif results.origin.origin == "private":
        detail = (
            "Simulated on one machine: nothing was sent. What an adapter reveals is not bounded."
        )
    else:
        what = "Phantom patients" if results.origin.origin == "phantom" else "Public data"
        detail = f"{what}, simulated on one machine: nothing left an institution."
    if promised(results):
        detail = "It covers the shared adapter; not scores, counts or personal adapters."
        if for_sites(results):
            detail += " What one patient's records change was not bounded."
    return Answer("At what privacy?", "privacy", "Statement", claim_of(results), detail)


def _cost(results: Results) -> Answer:
    total = results.bytes_up + results.bytes_down
    moved = f"{size(total)} in all" if total else "Bytes not recorded"
    per_round = max((_up_per_round(site) for site in results.sites.values()), default=0.0)
    parts = [f"at most {size(per_round)} up per site and round"] if per_round else []
    if results.peak_memory_bytes:
        parts.append(f"{size(results.peak_memory_bytes)} of memory at the peak")
    detail = ", ".join(parts)
    bold = f"{moved}, {duration(results.seconds)}"
    return Answer("At what cost?", "cost", "Cost", bold, detail and f"{_capital(detail)}.")


def _up_per_round(site: SiteResult) -> float:
    return site.bytes_up / admitted(site) if admitted(site) else 0.0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _who(results: Results) -> Answer:
    sites = results.sites.values()
    total, done = sum(map(asked, sites)), sum(map(admitted, sites))
    late = sum(cell.state == "late" for site in sites for cell in site.participation)
    question, joined = ("Who took part?", "part", "Rounds"), plural(len(sites), "site")
    if not total:
        return Answer(*question, f"{joined}, no round")
    bold = f"{joined}, {thousands(done)} of {plural(total, 'contribution')} asked for"
    parts = [f"{late} came late and {'was' if late == 1 else 'were'} waited for."] if late else []
    parts += [part for state in ("missing", "refused") if (part := _lost(results, state))]
    if not parts:
        parts = [f"Every contribution asked for was used, in {plural(results.rounds, 'round')}."]
    return Answer(*question, bold, " ".join(parts))


def _lost(results: Results, state: str) -> str:
    """Return ``Missing: Dunmere in rounds 14 and 20.``, at most two sites by name."""
    places = []
    for name in ordered(results):
        cells = results.sites[name].participation
        if at := [r for r, cell in enumerate(cells, 1) if cell.state == state]:
            where = (
                f"round {at[0]}" if len(at) == 1 else f"rounds {listing(ranges(at).split(', '), 9)}"
            )
            where = f"{len(at)} rounds" if len(where) > 24 else where
            places.append(f"{short(name)} in {where}")
    return f"{state.capitalize()}: {listing(places, 2)}." if places else ""


def _distrust(results: Results) -> Answer:
    found = limits(results)
    link = f"All {len(found)} limits" if found else "Limits"
    question = ("What to distrust?", "limits", link)
    if not found:
        return Answer(*question, "No rule fired. That is not the same as no limits.")
    return Answer(*question, "", items=tuple(limit.head for limit in found[:_SHOWN_LIMITS]))
