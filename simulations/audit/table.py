"""An audit as a table: for the terminal, and as Markdown between the markers of a page."""

from collections.abc import Iterator
from typing import Final

from rich.table import Table

from simulations.audit.results import AuditReport, BoundFound, InversionFound, MembershipFound

PAGE: Final = "audit"
"""Names the place of the table in a page."""

HEAD: Final = ("attack", "on", "found", "of one that finds nothing")

_WAYS: Final = {
    "alone": "one patient's update, as it is",
    "masked": "the same, masked for the secure sum",
    "sum-of-three": "the secure sum with two other sites, weighed as in the job",
    "sum-of-equals": "the secure sum with two other sites, all weighing the same",
    "sum-of-batches": "the secure sum of three sites' batches, the patient in one of them",
    "noised": "the same, clipped and noised",
}
_SCORES: Final = {"loss-drop": "loss under adapter and base", "calibrated": "calibrated similarity"}


def rows(report: AuditReport) -> Iterator[tuple[str, str, str, str]]:
    """Yield the lines of an audit: attack, on what, what was found, what chance would give."""
    for found in report.membership:
        yield _membership(found)
    for bound in report.bounds:
        yield _bound(bound)
    for inverted in report.inversion:
        yield from _inversion(inverted)


def _membership(found: MembershipFound) -> tuple[str, str, str, str]:
    return (
        f"membership, by {_SCORES[found.score]}",
        f"the adapter, trained {found.protection}",
        f"AUC {found.auc:.3f} ({found.low:.3f} to {found.high:.3f}); "
        f"TPR at 1 % FPR {found.hits:.3f} ({found.hits_low:.3f} to {found.hits_high:.3f})",
        "AUC 0.5, TPR 0.01",
    )


def _bound(found: BoundFound) -> tuple[str, str, str, str]:
    steps = f"{found.steps} steps of rate {found.rate:g}"
    where = "one step that everybody is in" if found.what == "one step" else steps
    verdict = "**refuted**" if found.bound > found.claimed else "holds"
    return (
        f"lower bound on epsilon at delta {found.delta:.2g}, confidence {found.confidence:g}",
        f"{where}, noise {found.noise:.3g}",
        f"at least {found.bound:.2f}; claimed {found.claimed:.2f}: {verdict} (could have shown "
        f"{found.most:.2f}; {found.right} of {found.guesses} guesses right)",
        "0",
    )


def _inversion(found: InversionFound) -> Iterator[tuple[str, str, str, str]]:
    where = _WAYS[found.way]
    yield (
        f"inversion, {found.tower} features",
        where,
        f"cosine {found.cosine:.3f} ({found.low:.3f} to {found.high:.3f}), at most "
        f"{found.largest:.3f} of {found.records} records",
        "0",
    )
    if found.tokens is not None and found.guessed is not None:
        yield (
            "inversion, tokens of the report",
            where,
            f"{found.tokens:.0%}",
            f"{found.guessed:.0%}",
        )


def audit_table(report: AuditReport) -> Table:
    """Return the audit for a terminal."""
    table = Table(*HEAD[:3], title=f"{report.name}: what an attacker measured")
    for row in rows(report):
        table.add_row(*(cell.replace("**", "") for cell in row[:3]))
    return table


def markdown(report: AuditReport, command: str) -> str:
    """Return the audit as Markdown, below the command that made it."""
    lines = ["```console", f"$ {command}", "```", "", _about(report), ""]
    lines += [f"| {' | '.join(HEAD)} |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(report)]
    lines += ["", *(f"Not run: {what}." for what in report.not_run)]
    return "\n".join(lines).rstrip() + "\n"


def _about(report: AuditReport) -> str:
    claim = "nothing is claimed"
    if report.epsilon is not None:
        claim = f"epsilon {report.epsilon:.3g} at delta {report.delta:g} is claimed"
    return (
        f"Job `{report.name}`, canaries at {report.site}, {report.records} records, "
        f"{report.created[:10]}; {claim}: **{report.status}**. Intervals are of 95 %."
    )
