"""Results of a deployed run, from what its coordinator kept; the report is made of them.

The coordinator never sees a record: counts by split, pictures and what sites say about themselves
are missing, and what is there is what the sites released.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.checkpoint import RunStore
from server.history import RunHistory
from server.outcome import Closing, RunOutcome, SiteLog, build_outcome
from server.phases import CLOSING_PHASES, FOLDERS
from server.records import RoundRecord, RunSummary
from server.run_files import read_manifest
from server.site_noise import site_statement
from shared.errors import RunDirectoryError
from shared.results import METRICS, DatasetOrigin, Results, SiteEvaluation, SiteResult
from simulations.histories import history_url
from simulations.results import (
    EXIT_CODES,
    NO_EVALUATION,
    RunFacts,
    assemble,
    seen,
    write_results,
)


def refresh_results(run: Path) -> None:
    """Write ``results.json`` of a run that was deployed; a simulated run has its own.

    Args:
        run: The run directory, ``runs/<run>`` in the coordinator's folder.

    Raises:
        RunDirectoryError: If the run is under way, or no round of it was committed.
        StorageError: If it could not be written; what was there before is intact.
    """
    if not (run / "manifest.json").exists() or read_manifest(run).get("engine") != "deployment":
        return
    with RunStore.open(run, lock=False) as store, RunHistory(history_url(run)) as history:
        if not history.knows(store.run):
            raise RunDirectoryError(f"{run}: has not begun; a report needs a run that ended")
        summary, rounds = history.run(store.run), history.committed_rounds(store.run)
        if summary.status == "running" or not rounds:
            word = "is under way" if summary.status == "running" else "has no committed round"
            raise RunDirectoryError(f"{run}: {word}; a report needs a run that ended")
        write_results(run, deployed_results(store, summary, rounds))


def deployed_results(
    store: RunStore, summary: RunSummary, rounds: Sequence[RoundRecord]
) -> Results:
    """Put the results of a deployed run together.

    Args:
        store: The run directory.
        summary: Its line in the history; what it says of the end holds.
        rounds: All committed rounds, in order; at least one.

    Raises:
        RunDirectoryError: If its last checkpoint cannot be read.
    """
    last = rounds[-1]
    shared = store.load_round(last.round, last.manifest_sha256)
    known = {c.site: (c.kind, c.examples) for r in rounds for c in r.contributions if c.kind}
    closing = _closing(store, shared.sha256())
    outcome = build_outcome(shared, rounds, closing, known, site_statement(store.job, rounds))
    sites = {
        name: _site(log, outcome.evaluations.get(name))
        for name, log in sorted(outcome.sites.items())
        if log.kind is not None
    }
    results = assemble(
        outcome, store.job, sites, DatasetOrigin(origin="private"), _facts(store, summary, outcome)
    )
    if summary.status == results.status:
        return results
    if summary.status == "running":  # the history may be behind its files
        return results
    # Such as a closing phase that lost a site, of which no round tells.
    end = {"exit_code": EXIT_CODES[summary.status], "reason": summary.reason}
    return results.model_copy(update={"status": summary.status, **end})


def _closing(store: RunStore, adapter: str) -> Closing:
    """Return the answers to the phases after the last round that are about its adapter."""
    kept = {phase: store.read_records(FOLDERS[phase]) for phase in CLOSING_PHASES}
    answers: dict[str, dict[str, dict[str, Any]]] = {
        phase: {site: r for site, r in records.items() if r.get("adapter_sha256") == adapter}
        for phase, records in kept.items()
    }
    slowest = [
        max(float(record["seconds"]) for record in records.values())
        for records in answers.values()
        if records
    ]
    return Closing(answers, {}, sum(slowest))


def _site(log: SiteLog, evaluation: SiteEvaluation | None) -> SiteResult:
    measured = evaluation or SiteEvaluation(
        metrics={}, differences={}, in_use={}, not_measured=dict.fromkeys(METRICS, NO_EVALUATION)
    )
    paired = log.kind == "paired"
    return SiteResult.model_validate(
        {
            **measured.model_dump(),
            "kind": log.kind,
            # As the history keeps it: the lower end of a bucket.
            "pairs": min(log.examples.values(), default=0) if paired else 0,
            "splits": {},
            **seen(log),
        }
    )


def _facts(store: RunStore, summary: RunSummary, outcome: RunOutcome) -> RunFacts:
    versions: Mapping[str, str] = store.manifest.get("versions", {})
    ended = summary.status if summary.status in ("stopped", "failed") else None
    return RunFacts(
        run=store.run,
        created=str(store.manifest["created"]),
        finished=(summary.finished or summary.started).isoformat(timespec="seconds"),
        engine="deployment",
        base_name=str(store.manifest.get("base", store.job.model.base)),
        base_sha256=store.base_sha256,
        seconds=round(outcome.seconds, 1),
        ended=ended,
        reason=summary.reason if ended else None,
        facts={
            "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "Command": f"consilia server submit {store.run}/job.toml",
            "Python": sys.version.split()[0],
        },
    )
