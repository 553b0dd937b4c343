"""Nothing that failed its audit is exported, unless somebody says why, and that is kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from shared.errors import RefusedError, RunDirectoryError
from shared.files import write_atomic
from simulations.audit.results import AuditReport, read_audit

OVERRIDES: Final = "audit-overrides.json"
"""Beside the run: every export against a failed audit, with the reason."""


@dataclass(frozen=True)
class Standing:
    """How a run stands with its audit.

    Attributes:
        word: ``passed``, ``failed``, ``nothing claimed``, ``none`` or ``of another adapter``.
        remark: A sentence for people; empty if there is nothing to say.
        failures: Why it failed.
    """

    word: str
    remark: str = ""
    failures: tuple[str, ...] = ()


def standing(run: Path, adapter_sha256: str, *, claims: bool) -> Standing:
    """Return how a run stands with its audit.

    Args:
        run: The run directory.
        adapter_sha256: Of the adapter that is about to leave.
        claims: Whether its job claims differential privacy.

    Raises:
        RunDirectoryError: If the audit is there and cannot be read.
    """
    report = read_audit(run)
    todo = f"run: consilia audit {run}"
    if report is None:
        remark = "The run claims differential privacy and was never audited; " + todo
        return Standing("none", remark if claims else "")
    if report.status == "failed":  # more rounds do not mend a mechanism
        return Standing("failed", failures=report.failures)
    if _is_of_another(report, adapter_sha256):
        return Standing("of another adapter", "The run went on after its audit; " + todo)
    return Standing(report.status)


def pass_gate(
    run: Path, adapter_sha256: str, *, claims: bool, to: Path, override: str | None
) -> tuple[Standing, Mapping[str, Any]]:
    """Return how a run stands and what its export's manifest says of it, or refuse.

    Args:
        run: The run directory.
        adapter_sha256: Of the adapter that is about to leave.
        claims: Whether its job claims differential privacy.
        to: Where it goes.
        override: Why it may leave although the audit failed.

    Raises:
        RefusedError: ``audit-failed``, unless there is an override.
        RunDirectoryError: If audit or overrides cannot be read.
        StorageError: If an override cannot be recorded; then nothing may leave.
    """
    found = standing(run, adapter_sha256, claims=claims)
    record: dict[str, Any] = {"audit": found.word}
    if found.word != "failed":
        return found, record
    if override is None or not override.strip():
        raise RefusedError(
            "audit-failed",
            f"{run}: its audit failed, so its adapter is not exported: "
            f"{'; '.join(found.failures)}. Mend the job and run it anew, or give a reason with "
            "--despite-audit, which is recorded in the export and the run",
        )
    record |= {"failures": list(found.failures), "exported_because": override.strip()}
    _note(run, {**record, "to": str(to), "adapter_sha256": adapter_sha256})
    return found, record


def _is_of_another(report: AuditReport, adapter_sha256: str) -> bool:
    return report.adapter_sha256 != adapter_sha256


def _note(run: Path, record: Mapping[str, Any]) -> None:
    path = run / OVERRIDES
    known: list[Any] = []
    if path.exists():
        try:
            known = list(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            raise RunDirectoryError(
                f"{path}: cannot be read, and it keeps what was exported against an audit; put "
                "back a copy, or move it away"
            ) from None
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps([*known, {"when": when, **record}], indent=1)
    write_atomic(path, (text + "\n").encode())
