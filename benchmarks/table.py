"""All results as Markdown: ``python -m benchmarks.table`` prints them.

``--write docs/performance.md`` puts them between that page's two markers, so that no figure is
copied by hand.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from benchmarks.schema import Report, Row
from benchmarks.session import LEAST_REPEATS, RESULTS, ratio_cells
from shared.errors import ConsiliaError
from shared.marked_page import MarkedPage

PAGE: Final = "results"
"""Names the place of the tables in a page."""

ORDER: Final = (
    *("flower_ray", "plain_loop", "plain_loop_vit_b32", "centralised", "prefix_cache"),
    *("loading", "peak", "round_overhead", "aggregation", "secagg", "growth", "gpu"),
)


class TableError(Exception):
    """The results cannot be read."""


def read_reports(folder: Path) -> list[Report]:
    """Return all reports of a folder, in the order in which they are shown.

    Raises:
        TableError: If a file is not a report.
    """
    reports = []
    for path in sorted(folder.glob("*.json")):
        try:
            reports.append(Report.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise TableError(
                f"{path}: not a benchmark's report: {place}: {first['msg']}; run the benchmark anew"
            ) from None
    last = len(ORDER)
    return sorted(
        reports,
        key=lambda report: (
            ORDER.index(report.benchmark) if report.benchmark in ORDER else last,
            report.benchmark,
        ),
    )


def markdown(reports: Sequence[Report]) -> str:
    """Return all reports as Markdown, a section each."""
    return "\n".join(line for report in reports for line in _section(report)).rstrip() + "\n"


def _section(report: Report) -> Iterator[str]:
    yield from (f"### {report.title}", "", f"`{report.command}`", "")
    if report.rows:
        yield from (_conditions(report), "")
        yield "| setting | result | median | lowest to highest | in CPU time | target |"
        yield "|---|---|---|---|---|---|"
        for row in report.rows:
            for found in row.ratios:
                name, *cells = ratio_cells(found)
                yield f"| {row.name} | {name} | **{cells[0]}** | {' | '.join(cells[1:])} |"
        yield ""
    for row in report.rows:
        yield from _context(row)
    for missing in report.not_measured:
        yield from (f"Not measured: {missing.name}: {missing.reason}.", "")


def _conditions(report: Report) -> str:
    machine, load = report.machine, report.load
    state = (
        f"**Contended: the run had {load.share:.0%} of the machine, so the figures say little**"
        if load.contended
        else f"Quiet (spin probe {load.share:.2f})"
    )
    facts = [
        f"{state}; load average {load.average[0]} to {load.average[1]}",
        f"{report.repeats} repeats" + (" (too few)" if report.repeats < LEAST_REPEATS else ""),
        machine.processor,
        f"{machine.cores} cores",
        " ".join(machine.flags),
        machine.accelerator or "no GPU",
        f"torch {machine.versions.get('torch', 'unknown')}",
        report.created[:10],
    ]
    return ", ".join(fact for fact in facts if fact) + "."


def _context(row: Row) -> Iterator[str]:
    parts = [f"{arm.name} {arm.wall_median:.3g} s" for arm in row.arms]
    parts += [f"{name} {value:,.4g}" for name, value in row.numbers.items()]
    parts += [
        f"gate {'passed' if gate.passed else '**failed**'}: {gate.name} {gate.value:.1e} "
        f"(at most {gate.limit:.0e})"
        for gate in row.gates
    ]
    if parts:
        yield from (f"{row.name}: {'; '.join(parts)}.", "")


def main() -> int:
    """Print the results, or write them into a page."""
    parser = argparse.ArgumentParser(description="All results as Markdown.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--write", type=Path, help="page to put them into, between its markers")
    options = parser.parse_args()
    try:
        content = markdown(read_reports(options.results))
        if options.write is None:
            sys.stdout.write(content)
        else:
            MarkedPage(options.write, PAGE).write(content)
    except (TableError, ConsiliaError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
