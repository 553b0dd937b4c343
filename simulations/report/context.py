"""From results and manifest to everything the template prints."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.page import assets, marks
from shared.page.markup import trusted
from shared.page.numbers import day, duration, moment, plural, power, short, true_minus
from shared.results import Metric, Results, SiteResult
from simulations.audit.results import AuditReport
from simulations.report import figures, flow, panels, participation, privacy, readings, towers
from simulations.report.answers import answers
from simulations.report.disclosure import counter, embedded, exact, pictures_allowed
from simulations.report.limits import comparisons_shown, intervals_shown, limits
from simulations.report.proxy import proxy
from simulations.report.stories import story, title
from simulations.report.verdict import pill, verdict
from simulations.report.words import (
    COMPARISONS,
    LEAST_PATIENTS,
    METRICS,
    MINIMUM_COUNT,
    WITHOUT_SHARED_MODEL,
    series,
)

MOST_RECORDS = 60
CONTENTS = (
    ("answer", "The answer"),
    ("results", "Results by site"),
    ("sites", "Each site"),
    ("part", "Who took part"),
    ("privacy", "Privacy"),
    ("course", "Course of training"),
    ("calibration", "Calibration"),
    ("gallery", "Pictures found"),
    ("cost", "Cost"),
    ("limits", "What to distrust"),
    ("record", "Record"),
)


@dataclass(frozen=True)
class Room:
    """What a page has room for; less of it is given out when the page grows over its budget."""

    pictures: int = panels.MOST_PICTURES
    course_table: bool = True


def context(
    results: Results,
    manifest: Mapping[str, object],
    room: Room,
    digest: str,
    audit: AuditReport | None = None,
) -> dict[str, object]:
    """Return the template's context; ``results`` must be released already."""
    return {
        "assets": assets.load(),
        "definitions": marks.definitions(),
        "series_key": marks.series_key,
        "cell_key": marks.cell_key,
        "line_key": marks.line_key,
        "cell_words": marks.CELL_WORDS,
        "data_json": trusted(embedded(results)),
        "contents": CONTENTS,
        "run": results,
        "digest": digest,
        "exact": exact(results),
        "claim": privacy.CLAIM,
        "promised": privacy.promised(results),
        "about_noise": privacy.about_noise(results),
        "noised_together": privacy.together(results),
        "site_claims": [privacy.site_claim(results, name) for name in figures.heads(results)],
        "statements": privacy.statements(results),
        "about_sums": privacy.about_sums(results),
        "audit": privacy.audited(audit),
        "attacks": privacy.attacks(audit),
        **_head(results),
        **_results_section(results),
        **_part_section(results),
        **_panel_sections(results, room),
        "limits": limits(results),
        "level_tones": {
            "affects the result": "bad", "read with care": "warn", "for information": "plain"
        },
        "record": record(results, manifest),
        "least_patients": LEAST_PATIENTS,
        "minimum": MINIMUM_COUNT,
    }  # fmt: skip


def _head(results: Results) -> dict[str, object]:
    known = figures.heads(results)
    dense = len(known) > 8
    cards = [
        (known[name], *title(name, site), story(results, name)) for name, site in _sites(results)
    ]
    return {
        "pill": pill(results),
        "verdict": verdict(results),
        "measure": measure(results),
        "answers": answers(results),
        "when": f"{day(results.created)}, {plural(results.rounds, 'round')}, {results.base_name}, "
        f"LoRA rank {results.aggregation.rank}",
        "known": known,
        "heads": list(known.values()),
        "cards": cards,
        "dense": dense,
        "mean_first": len(known) > figures.CONTEXT_ROWS,
    }


def _sites(results: Results) -> list[tuple[str, SiteResult]]:
    return [(name, results.sites[name]) for name in readings.ordered(results)]


def measure(results: Results) -> str:
    """Return the line under the verdict: what was measured, which way, what chance gives."""
    words = METRICS[results.main_metric]
    best = "0 is perfect" if words.lower_is_better else "1 is perfect"
    chance = f"{words.chance:g} is chance, {best}" if words.chance is not None else best
    if words.label.startswith("R@"):
        chance = f"{best}; {_recall_chance(results)}"
    return (
        "Main measure, fixed in the job file before the run: "
        f"{words.long}, on each site\u2019s own test patients. {chance[0].upper()}{chance[1:]}."
    )


def _recall_chance(results: Results) -> str:
    """Return chance for retrieval, which depends on how many texts there are to choose from."""
    k = int(results.main_metric.rpartition("r")[2])
    metric: Metric = results.main_metric
    texts = [
        site.gallery_texts
        for site in results.sites.values()
        if site.gallery_texts and any(metric in rows for rows in site.metrics.values())
    ]
    if not texts:
        return "chance depends on the number of choices"
    low, high = (min(1.0, k / n) for n in (max(texts), min(texts)))
    if f"{low:.2f}" == f"{high:.2f}":
        return f"chance is about {low:.2f}"
    return f"chance is about {low:.2f} to {high:.2f}, by the number of choices"


def _results_section(results: Results) -> dict[str, object]:
    main = readings.main_comparison(results)
    models = figures.lanes(results)
    rows, axis, start = figures.level_rows(results, models)
    retrieval, retrieval_models, retrieval_axis = figures.retrieval_rows(results)
    columns, table = figures.level_table(results)
    words, rule = METRICS[results.main_metric], results.aggregation.rule
    shown = comparisons_shown(results)
    return {
        "main": main,
        "main_words": COMPARISONS[main],
        "metric": words,
        "fig1": figures.forest(results, main),
        "no_mean": figures.no_mean(readings.read(results, main)),
        "fig2": rows,
        "fig2_axis": axis,
        "fig2_start": start,
        "models": [(model, *series(model, rule)) for model in models],
        "oracle": any("oracle" in site.metrics for site in results.sites.values()),
        "table1": (columns, table),
        "fig3": [figures.forest(results, comparison) for comparison in shown],
        "fig3_no_mean": [figures.no_mean(readings.read(results, c)) for c in shown],
        "intervals": intervals_shown(results),
        "by_chance": round(0.05 * intervals_shown(results)),
        "measured": len(readings.read(results, main).measured),
        "fig4": retrieval,
        "fig4_axis": retrieval_axis,
        "fig4_models": [(model, *series(model, rule)) for model in retrieval_models],
        "table2": figures.retrieval_table(results, retrieval_models),
        "not_retrieved": figures.not_retrieved(results),
        "chooses": readings.chosen_on_validation(results),
        "always": results.personalization != "none" and results.personal_use == "always",
    }


def _part_section(results: Results) -> dict[str, object]:
    rounds = max((len(s.participation) for s in results.sites.values()), default=0)
    return {
        "fig5": participation.rounds_rows(results),
        "fig5_axis": participation.rounds_axis(results),
        "fig5_rounds": rounds,
        "fig5_bin": len(participation.bins(rounds)[0]) if rounds else 1,
        "events": participation.events(results),
        "fig6": flow.boxes(flow.site_flow(results)),
        "fig7": flow.boxes(flow.patient_flow(results), counter(results)),
        "declared": flow.declared(results),
        "contributed": flow.contributed(results),
    }


def _panel_sections(results: Results, room: Room) -> dict[str, object]:
    rows, axis, parts = panels.cost_rows(results)
    round_seconds = sorted(cost.seconds for cost in results.round_costs)
    middle = duration(round_seconds[len(round_seconds) // 2]) if round_seconds else ""
    return {
        "course": panels.course(results, table=room.course_table),
        "course_table": room.course_table,
        "towers": towers.towers(results, table=room.course_table),
        "tower_names": towers.NAMES,
        "proxy": proxy(results),
        "calibration": panels.calibration(results),
        "panels_left": len(results.sites) - len(panels.shown_panels(results)),
        "gallery": panels.gallery(results, room.pictures),
        "gallery_total": len(results.gallery),
        "pictures_allowed": pictures_allowed(results),
        "cost_rows": rows,
        "cost_axis": axis,
        "cost_parts": parts,
        "median_round": middle,
        "relative_error": _error(results.aggregation.relative_error),
    }


def _shared_name(results: Results) -> str:
    """Return what the sites have in common after the last round."""
    own = results.aggregation.rule in WITHOUT_SHARED_MODEL
    return "Common features" if own else "Shared adapter"


def record(results: Results, manifest: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the record: what the results say first, then the manifest as it is.

    What it says of privacy has a section of its own.
    """
    rule = results.aggregation
    took = f"{moment(results.created)} to {moment(results.finished)}"
    rows = [
        ("Run", results.run),
        ("Time", took),
        ("Job", f"{results.name}, sha256 {results.job_sha256}"),
        ("Base", f"{results.base_name}, sha256 {results.base_sha256}"),
        (_shared_name(results), f"after round {results.rounds}, sha256 {results.adapter_sha256}"),
        ("Aggregation", _aggregation(rule)),
        ("Personalisation", results.personalization),
        ("Main measure", f"{METRICS[results.main_metric].label}, margin {results.margin:g}"),
        ("Seed", f"{results.seed}, per round and site by HKDF"),
        ("Engine", results.engine),
        ("Data", _data(results)),
        ("Exit code", f"{results.exit_code}, {results.status.replace('-', ', ')}"),
    ]
    rows += [("Reason", results.reason)] if results.reason else []
    rows += [(label, value) for label, value in results.facts.items()]
    seen = {label.lower() for label, _ in rows}
    others = {key: value for key, value in manifest.items() if key != "privacy"}
    rows += [row for row in flat(others) if row[0].lower() not in seen]
    more = len(rows) - MOST_RECORDS
    if more > 0:
        rows = [*rows[:MOST_RECORDS], ("Further entries", f"{more}, in manifest.json")]
    return [(short(label, 40), value or "not recorded") for label, value in rows]


def _aggregation(rule: object) -> str:
    values = vars(rule)
    return (
        f"{values['rule']}, rank {values['rank']}, {plural(values['folds'], 'fold')}, "
        f"relative error {_error(values['relative_error'])}, {values['clipped']} clipped"
    )


def _error(relative: float | None) -> str:
    return "not measured" if relative is None else power(relative)


def _data(results: Results) -> str:
    origin = results.origin
    parts = [origin.origin, origin.licence, origin.description]
    return ", ".join(part for part in parts if part)


def flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as label and text; empty is said in words."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += flat(value, f"{label}: ")
        elif isinstance(value, list | tuple):
            words = ", ".join(_scalar(item) for item in value) if value else "none"
            rows.append((label, words))
        else:
            rows.append((label, _scalar(value)))
    return rows


def _scalar(value: object) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return true_minus(str(value))
    if isinstance(value, Mapping):
        return "; ".join(f"{label} {text}" for label, text in flat(value))
    return str(value)
