"""``consilia audit``: rehearse a job with canaries, attack it, and say what came of it."""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from server.checkpoint import RunStore
from server.history import RunHistory
from server.run_files import new_run_folder, read_manifest
from shared.config import JobConfig, load_job
from shared.errors import ConfigError, RunDirectoryError
from shared.marked_page import MarkedPage
from simulations.audit.attacks import Extent, attack
from simulations.audit.results import AuditReport, write_audit
from simulations.audit.statements import tell_run
from simulations.audit.table import PAGE, audit_table, markdown
from simulations.histories import history_url, known_runs


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        subject: A run's folder or a job file.
        site: Which site gets the canaries.
        canaries: Phantom patients.
        gradients: Canaries in the sums.
        records: Single records that are inverted.
        confidence: Of the bound on epsilon.
        overrides: Values that replace the job's, by dotted key.
        out: Folder that holds audits of jobs.
        write: Page that gets the table.
        command: As typed.
        as_json: Print the audit as one JSON object.
    """

    subject: Path
    site: str | None
    canaries: int
    gradients: int
    records: int
    confidence: float
    overrides: Mapping[str, object]
    out: Path
    write: Path | None
    command: str
    as_json: bool


@dataclass(frozen=True)
class _Subject:
    """What is audited: a job, and the run that it came to, if it did."""

    job: JobConfig
    run: Path | None
    adapter_sha256: str | None
    deployed: bool


def audit_command(wishes: Wishes) -> int:
    """Carry out ``consilia audit``; return the exit code."""
    console = Console(stderr=wishes.as_json)
    if not console.is_terminal:
        console = Console(stderr=wishes.as_json, width=100)
    page = None if wishes.write is None else MarkedPage.open(wishes.write, PAGE)
    subject = _subject(wishes)
    extent = Extent(
        wishes.site, wishes.canaries, wishes.gradients, wishes.records, wishes.confidence
    )
    with tempfile.TemporaryDirectory(prefix="consilia-audit-") as folder:
        report = attack(
            Path(folder), subject.job, extent, subject.adapter_sha256, subject.deployed, console
        )
    if subject.run is None:
        stem = f"audit-{subject.job.name}-{subject.job.seed}"
        with new_run_folder(wishes.out, stem, known_runs(wishes.out), "another --out") as made:
            path = write_audit(made, report)
    else:
        path = write_audit(subject.run, report)
        tell_run(subject.run, report)
    if page is not None:
        page.write(markdown(report, wishes.command))
    if wishes.as_json:
        sys.stdout.write(report.model_dump_json(indent=1) + "\n")
    else:
        _print(console, report, path, subject.run)
    return 1 if report.status == "failed" else 0


def _subject(wishes: Wishes) -> _Subject:
    given = wishes.subject
    if given.is_file():
        return _Subject(load_job(given, wishes.overrides), None, None, deployed=False)
    if not (given / "manifest.json").exists():
        raise RunDirectoryError(f"{given}: is neither a run's folder nor a job file")
    if wishes.overrides:
        raise ConfigError("--set changes a job file; a run is audited with the job it had")
    with RunStore.open(given, lock=False) as store, RunHistory(history_url(given)) as history:
        last = history.last_round(store.run)
        if last is None:
            raise RunDirectoryError(f"{given}: no round is committed yet, nothing to audit")
        adapter = store.load_round(last.round, last.manifest_sha256).sha256()
        deployed = read_manifest(given).get("engine") == "deployment"
        return _Subject(store.job, given, adapter, deployed)


def _print(console: Console, report: AuditReport, path: Path, run: Path | None) -> None:
    console.print(audit_table(report))
    for what in report.not_run:
        console.print(f"Not run: {what}", highlight=False)
    console.print(f"\nAudit    {path}", highlight=False)
    for failure in report.failures:
        console.print(f"Failed   {failure}", style="bold red", highlight=False)
    console.print(f"Next     {_next(report, run)}", highlight=False, soft_wrap=True)


def _next(report: AuditReport, run: Path | None) -> str:
    if report.status == "failed":
        return "do not release it; find out why, mend the job or the installation, audit anew"
    if report.status == "nothing claimed":
        return (
            "nothing is claimed, so nothing could fail; for a claim set "
            "privacy.differential_privacy = true and privacy.epsilon in the job (docs/privacy.md)"
        )
    if run is None:
        return "run the job: consilia simulate JOB.toml, and audit the run before its export"
    return f"open the report; consilia export {run} --to DIR"
