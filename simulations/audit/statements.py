"""What an audit changes in a run: its statements, results and report."""

from pathlib import Path

from pydantic import ValidationError

from server.checkpoint import RunStore
from shared.errors import RunDirectoryError
from shared.privacy.statement import Statement, claimed, unclaimed
from shared.results import Results
from simulations.audit.results import AuditReport
from simulations.report import write_report
from simulations.results import write_results


def tell_run(run: Path, report: AuditReport) -> None:
    """Write an audit into a run's manifest, results and report; nothing without results.

    Raises:
        RunDirectoryError: If its results cannot be read.
        StorageError: If something could not be written.
    """
    path = run / "results.json"
    if not path.exists():
        return
    try:
        results = Results.model_validate_json(path.read_bytes())
    except ValidationError:
        raise RunDirectoryError(
            f"{path}: not the results of this version, so the audit cannot be told in them"
        ) from None
    found = {site: audited(each, report) for site, each in results.privacy.items()}
    if found:
        with RunStore.open(run) as store:
            told = {site: statement.tree() for site, statement in found.items()}
            store.tell_privacy({**store.manifest.get("privacy", {}), **told})
        sites = {
            name: site.model_copy(update={"privacy": found.get(name)})
            for name, site in results.sites.items()
        }
        write_results(run, results.model_copy(update={"sites": sites}))
    write_report(run)


def audited(statement: Statement, report: AuditReport) -> Statement:
    """Return a statement with what an audit measured; without its claim if that was refuted."""
    claim, bound = statement.claim, report.run_bound
    if claim is None or bound is None:
        return statement
    if report.failures:
        return unclaimed(*report.failures)
    measured = {"audit_bound": bound.bound, "audit_confidence": bound.confidence}
    return claimed(claim.model_copy(update=measured))
