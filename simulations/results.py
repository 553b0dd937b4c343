"""From a run to ``results.json``: what sites measured, what the coordinator saw, status."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.data.records import SiteData
from server.outcome import RunOutcome, SiteLog
from server.records import SURPLUS
from shared import files
from shared.config import JobConfig
from shared.page.numbers import listing, plural
from shared.results import (
    METRICS,
    Aggregation,
    DatasetOrigin,
    GalleryQuery,
    Results,
    SiteEvaluation,
    SiteResult,
)
from simulations.results_table import results_table
from simulations.summary import mean_of, worst_of

__all__ = ["RunFacts", "build_results", "results_table", "write_results"]

Status = Literal["finished", "finished-incomplete", "stopped", "failed"]

EXIT_CODES: Mapping[Status, int] = {
    "finished": 0,
    "finished-incomplete": 3,
    "stopped": 1,
    "failed": 1,
}

NO_EVALUATION = "the site did not answer when it was asked to evaluate"


@dataclass(frozen=True)
class RunFacts:
    """What only the command knows about a run.

    Attributes:
        run: The run's name.
        created: When it began, ISO 8601 with zone.
        finished: When it ended.
        engine: What carried the messages.
        base_name: As given in the job.
        base_sha256: Of the frozen weights.
        seconds: Wall seconds, interruptions left out.
        seconds_by_part: Such as ``federation``, ``baselines``, ``evaluation``.
        peak_memory_bytes: Peak over the processes of the run.
        ended: ``stopped`` or ``failed`` if the run did not reach its end, else ``None``.
        reason: Why, as a sentence; for runs that did reach it the reason is written here.
        facts: Further lines for the record.
    """

    run: str
    created: str
    finished: str
    engine: Literal["local", "flower", "deployment"]
    base_name: str
    base_sha256: str
    seconds: float
    seconds_by_part: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    ended: Literal["stopped", "failed"] | None = None
    reason: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def build_results(
    outcome: RunOutcome,
    job: JobConfig,
    data: Mapping[str, SiteData],
    facts: RunFacts,
    gallery: Sequence[GalleryQuery] = (),
    pictures: Mapping[str, str] | None = None,
) -> Results:
    """Put a run's results together.

    Args:
        outcome: Of the round engine.
        job: The job that was carried out.
        data: Every site's records; only counts, kind and origin are read.
        facts: What only the command knows.
        gallery: Queries to show.
        pictures: Data URI by picture key.
    """
    sites = {
        name: site_result(records, outcome.sites.get(name), outcome.evaluations.get(name))
        for name, records in sorted(data.items())
    }
    origin = origin_of([records.origin for records in data.values()])
    results = assemble(outcome, job, sites, origin, facts)
    return results.model_copy(update={"gallery": list(gallery), "pictures": dict(pictures or {})})


def assemble(
    outcome: RunOutcome,
    job: JobConfig,
    sites: Mapping[str, SiteResult],
    origin: DatasetOrigin,
    facts: RunFacts,
) -> Results:
    """Put the results of a run together whose sites' own are known.

    Args:
        outcome: Of the round engine.
        job: The job that was carried out.
        sites: By name; a site of the run that is missing here was never heard.
        origin: Where pictures and texts come from.
        facts: What only the command knows.
    """
    if outcome.privacy is not None:
        told = {"privacy": outcome.privacy}
        sites = {name: site.model_copy(update=told) for name, site in sites.items()}
    status, reason = status_of(outcome, job, sites)
    if facts.ended:
        status, reason = facts.ended, facts.reason
    worst, worst_site = worst_of(sites)
    peaks = [log.peak_memory_bytes for log in outcome.sites.values()]
    return Results(
        name=job.name,
        run=facts.run,
        created=facts.created,
        finished=facts.finished,
        status=status,
        exit_code=EXIT_CODES[status],
        reason=reason,
        engine=facts.engine,
        adapter_sha256=outcome.shared.sha256(),
        base_sha256=facts.base_sha256,
        base_name=facts.base_name,
        job_sha256=job.digest(),
        rounds=outcome.rounds,
        rounds_planned=job.rounds,
        seconds=facts.seconds,
        seconds_by_part=dict(facts.seconds_by_part),
        bytes_up=sum(log.bytes_up for log in outcome.sites.values()),
        bytes_down=sum(log.bytes_down for log in outcome.sites.values()),
        peak_memory_bytes=max([facts.peak_memory_bytes, *peaks]),
        main_metric=job.evaluate.main,
        margin=job.evaluate.margin,
        personalization=job.personalize.method,
        personal_use=job.personalize.use,
        seed=job.seed,
        aggregation=Aggregation(
            rule=job.aggregate.rule,
            rank=job.lora.rank,
            folds=outcome.shared.folds,
            # Only a run without a committed round has not measured it.
            relative_error=outcome.relative_error,
            clipped=outcome.clipped,
        ),
        origin=origin,
        sites=dict(sites),
        mean=mean_of(sites),
        worst=worst,
        worst_site=worst_site,
        round_costs=list(outcome.round_costs),
        resumed_rounds=list(outcome.resumed_rounds),
        facts=dict(facts.facts),
        secure_aggregation=job.privacy.secure_aggregation,
    )


def site_result(
    data: SiteData, log: SiteLog | None, evaluation: SiteEvaluation | None
) -> SiteResult:
    """Join what a site measured with what the coordinator saw of it.

    Args:
        data: The site's records, for kind and counts.
        log: ``None`` if the site was never heard.
        evaluation: ``None`` if it did not evaluate; every metric then says so.
    """
    measured = evaluation or SiteEvaluation(
        metrics={}, differences={}, in_use={}, not_measured=dict.fromkeys(METRICS, NO_EVALUATION)
    )
    counts = {name: split.counts() for name, split in data.splits.items()}
    course = {} if log is None else seen(log)
    return SiteResult.model_validate(
        {
            **measured.model_dump(),
            "kind": data.kind,
            # A private site's words about itself are not the run's to print.
            "description": data.origin.description if data.origin.origin != "private" else "",
            "pairs": counts["train"].pairs,
            "splits": {name: entry.model_dump() for name, entry in counts.items()},
            **course,
        }
    )


def seen(log: SiteLog) -> dict[str, object]:
    """Return the fields of a site's result that the coordinator saw."""
    return {
        "course": [point.model_dump() for point in log.course],
        "participation": [cell.model_dump() for cell in log.participation],
        "seconds": dict(log.seconds),
        "bytes_up": log.bytes_up,
        "bytes_down": log.bytes_down,
        "peak_memory_bytes": log.peak_memory_bytes,
        "gradient_norms": {tower: list(norms) for tower, norms in log.gradient_norms.items()},
        "discrepancy": {tower: list(ratios) for tower, ratios in log.discrepancy.items()},
    }


def status_of(
    outcome: RunOutcome, job: JobConfig, names: Sequence[str] | Mapping[str, object]
) -> tuple[Status, str | None]:
    """Return the status of a run that reached its end, and why it is not plain success.

    ``finished`` needs every planned round, every asked contribution of every round admitted,
    and an evaluation from every site. A site asked beyond the cohort that was not needed is no
    loss.
    """
    asked = [cell for log in outcome.sites.values() for cell in log.participation]
    asked = [cell for cell in asked if cell.state != "idle" and cell.reason != SURPLUS]
    lost = sum(cell.state not in ("in", "late") for cell in asked)
    silent = sorted(name for name in names if name not in outcome.evaluations)
    reasons = []
    if outcome.rounds < job.rounds:
        reasons.append(f"{outcome.rounds} of {job.rounds} rounds were committed")
    if lost:
        sites = sorted(
            {
                f"{name}: {cell.reason or cell.state}"
                for name, log in outcome.sites.items()
                for cell in log.participation
                if cell.state in ("missing", "refused")
            }
        )
        reasons.append(
            f"{lost} of {plural(len(asked), 'contribution')} were not admitted "
            f"({listing(sites, 3)})"
        )
    if silent:
        reasons.append(f"no evaluation from {listing(silent, 3)}")
    if not reasons and not outcome.complete:
        # A closing phase, such as the fit of a personal adapter, went on without a site.
        reasons.append(f"not every request was answered: {listing(sorted(outcome.lost), 3)}")
    return ("finished-incomplete", "; ".join(reasons)) if reasons else ("finished", None)


def origin_of(origins: Sequence[DatasetOrigin]) -> DatasetOrigin:
    """Return one origin for the run: the most protected of the sites' ones decides."""
    found = {origin.origin for origin in origins}
    # A public set without a licence may not be shown, so its lack of one must survive.
    licences = {origin.licence for origin in origins if origin.origin == "public"}
    licence = "" if "" in licences else "; ".join(sorted(licences))
    descriptions = "; ".join(dict.fromkeys(o.description for o in origins if o.description))
    if not found or "private" in found:
        return DatasetOrigin(origin="private")
    if "public" in found:
        return DatasetOrigin(origin="public", licence=licence, description=descriptions)
    return DatasetOrigin(origin="phantom", description=descriptions)


def write_results(run_dir: Path, results: Results) -> Path:
    """Write ``results.json`` into a run's folder, whole or not at all.

    Raises:
        StorageError: If it could not be written; what was there before is intact.
    """
    path = run_dir / "results.json"
    text = json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False)
    files.write_atomic(path, (text + "\n").encode())
    return path
