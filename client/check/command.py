"""``consilia client check``: the preflight on a terminal, as lines, or as one JSON object."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from client.check import forecast
from client.check.finding import Finding, NotCheckedError, State
from client.check.preflight import findings
from client.check.subject import Subject
from client.data.report import problem_table
from shared.errors import ConfigError, DataProblem
from shared.processes import forbid_dumps

_STYLES: Final[dict[State, str]] = {"ok": "green", "warn": "yellow", "fail": "red"}
_SHOWN_PROBLEMS: Final = 1000


def check_command(
    config: Path, job: Path | None, *, offline: bool = False, as_json: bool = False
) -> int:
    """Check a site and print what was found.

    Args:
        config: The ``site.toml``.
        job: The consortium's job.
        offline: Leave out what needs the gateway.
        as_json: Print one JSON object and nothing else.

    Returns:
        The exit code: 0, or that of bad input if a check fails.
    """
    forbid_dumps()  # it reads the records, and opens what is sealed
    console = Console()
    subject = Subject(config, job, datetime.now(UTC))
    plain = not as_json and not console.is_terminal
    found: list[Finding] = []
    with Status("looking", console=Console(stderr=True)) as status:
        for finding in findings(subject, offline=offline, begin=status.update):
            found.append(finding)
            if plain:
                console.out(line_of(finding), highlight=False)
    problems = _problems(subject)
    if as_json:
        console.out(json.dumps(_tree(subject, found, problems), indent=2), highlight=False)
    elif not plain:
        console.print(table_of(found))
    if not as_json:
        if problems:
            name = subject.settings.site.name
            console.print(problem_table([(name, problem) for problem in problems]))
        console.out(_verdict(found), highlight=False)
    return ConfigError.exit_code if _failed(found) else 0


def line_of(finding: Finding) -> str:
    """Return a finding as one line."""
    text = f"{finding.state:<5}{finding.name}: {finding.found}"
    if finding.expected:
        text += f"; expected {finding.expected}"
    return " ".join((f"{text}; {finding.do}" if finding.do else text).split("\n"))


def table_of(found: Sequence[Finding]) -> Table:
    """Return all findings as a table."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "check", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for each in found:
        style = _STYLES[each.state]
        words = each.found + (f"\nexpected {each.expected}" if each.expected else "")
        mark, do = Text(each.state, style=style), Text(each.do, style="" if each.do else "dim")
        table.add_row(mark, Text(each.name), Text(words), do)
    return table


def _tree(
    subject: Subject, found: Sequence[Finding], problems: Sequence[DataProblem]
) -> dict[str, Any]:
    try:
        costs: dict[str, Any] | None = forecast.forecast(subject).tree()
    except NotCheckedError:
        costs = None
    return {
        "ok": not _failed(found),
        **subject.facts,
        "findings": [dataclasses.asdict(each) for each in found],
        "problems": [dataclasses.asdict(each) for each in problems[:_SHOWN_PROBLEMS]],
        "forecast": costs,
    }


def _problems(subject: Subject) -> tuple[DataProblem, ...]:
    try:
        return subject.records.check.problems
    except (NotCheckedError, OSError):
        return ()


def _failed(found: Sequence[Finding]) -> bool:
    return any(each.state == "fail" for each in found)


def _verdict(found: Sequence[Finding]) -> str:
    failed = sum(each.state == "fail" for each in found)
    warned = sum(each.state == "warn" for each in found)
    ready = "not ready" if failed else "ready"
    return f"{ready}: {failed} to mend, {warned} to know of, {len(found)} looked at"
