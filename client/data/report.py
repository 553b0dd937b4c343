"""Print what a check or a description found: tables for people, one JSON object for programs."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.data.check import SiteCheck, check_site, checked
from client.data.describe import QUANTILES, SiteDescription, described
from client.data.inspection import inspect_site
from client.data.overview import overview_tables, write_figure
from client.data.sources import SiteSource, find_sites
from shared.errors import DataError, DataProblem, InputError

_MOST_ROWS = 40
_LEFT_OUT = {"both": "", "image": " (texts left out)", "text": " (images left out)"}
_DONE, _BAD_INPUT = 0, 2


@dataclass(frozen=True)
class DataOptions:
    """How to read a folder; see ``client.data.sources.find_sites``."""

    site_column: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    image_only: Sequence[str] = ()
    text_only: Sequence[str] = ()
    only: Sequence[str] = ()
    accept: tuple[str, ...] = ()
    quick: bool = False
    find: Callable[..., list[SiteSource]] = find_sites
    """What finds the sites; simulated ones have their pictures elsewhere."""
    made_by: Callable[[Path], str] = lambda _folder: ""
    """Says how a folder's sites were dealt out, in a sentence; empty if they were not."""

    def sources(self, folder: Path) -> list[SiteSource]:
        """Return the folder's sites; raises what ``find_sites`` raises."""
        found = self.find(
            folder,
            site_column=self.site_column,
            columns=self.columns,
            image_only=self.image_only,
            text_only=self.text_only,
            only=self.only,
        )
        return [dataclasses.replace(source, accept=self.accept) for source in found]


def print_check(
    folder: Path, options: DataOptions, console: Console, *, as_json: bool = False
) -> int:
    """Check every site of a folder and print all problems.

    Returns:
        The command's exit code: 0 if all data can be used, 2 if not.

    Raises:
        InputError: If no site can be found; as JSON it is printed like any problem.
    """
    try:
        checks = [check_site(source, quick=options.quick) for source in options.sources(folder)]
    except InputError as error:
        if not as_json:
            raise
        return _print_failure(error, console)
    good = all(check.ok for check in checks)
    if as_json:
        _print_json({"ok": good, "sites": [_check_tree(check) for check in checks]}, console)
        return _DONE if good else _BAD_INPUT
    console.print(_check_line(checks))
    console.print(_counts_table(checks))
    _print_problems(checks, console)
    return _DONE if good else _BAD_INPUT


def print_describe(
    folder: Path,
    options: DataOptions,
    console: Console,
    *,
    as_json: bool = False,
    figure: Path | None = None,
) -> int:
    """Describe every site of a folder; prints the problems instead where there are errors.

    Several sites are shown side by side at the end. The figure is written as well if given.

    Returns:
        The command's exit code: 0, or 2 if the data of a site cannot be used.

    Raises:
        InputError: If no site can be found; as JSON it is printed like any problem.
    """
    described_sites, broken = [], []
    try:
        for source in options.sources(folder):
            site = inspect_site(source)
            check = checked(site)
            if check.ok:
                described_sites.append(described(site))
            else:
                broken.append(check)
    except InputError as error:
        if not as_json:
            raise
        return _print_failure(error, console)
    made_by = options.made_by(folder)
    if figure is not None:
        write_figure(figure, described_sites, made_by)
    if as_json:
        tree: dict[str, Any] = {
            "ok": not broken,
            "made_by": made_by,
            "sites": [_tree(site) for site in described_sites],
            "problems": [_check_tree(check) for check in broken],
        }
        _print_json(tree, console)
        return _BAD_INPUT if broken else _DONE
    if broken:
        console.print(_check_line(broken))
        _print_problems(broken, console)
    for site_description in described_sites:
        _print_description(site_description, console)
    if made_by:
        console.print(Text(made_by))
    if len(described_sites) > 1:
        for table in overview_tables(described_sites):
            console.print(table)
    return _BAD_INPUT if broken else _DONE


def problem_table(problems: Sequence[tuple[str, DataProblem]]) -> Table:
    """Return problems, each with its site's name, as a table: errors first.

    A long list ends with how many more there are.
    """
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("site", "row", "column", "rule", "problem"):
        table.add_column(name, justify="right" if name == "row" else "left", overflow="fold")
    ordered = sorted(problems, key=lambda pair: pair[1].severity != "error")
    for site, problem in ordered[:_MOST_ROWS]:
        style = "red" if problem.severity == "error" else "yellow"
        table.add_row(
            Text(site),
            str(problem.where or ""),
            Text(problem.column or ""),
            Text(problem.rule, style=style),
            Text(problem.message),
        )
    if len(problems) > _MOST_ROWS:
        more = f"… and {len(problems) - _MOST_ROWS} more; --json lists all"
        table.add_row("", "", "", "", more)
    return table


def _print_problems(checks: Sequence[SiteCheck], console: Console) -> None:
    problems = [(check.name, problem) for check in checks for problem in check.problems]
    if problems:
        console.print(problem_table(problems))


def _check_line(checks: Sequence[SiteCheck]) -> Text:
    rows = sum(check.rows for check in checks)
    errors = sum(len(check.errors) for check in checks)
    warnings = sum(len(check.warnings) for check in checks)
    verdict = "cannot be used" if errors else "ready"
    quick = ", headers only" if any(check.quick for check in checks) else ""
    return Text(
        f"{_many(len(checks), 'site')}, {_many(rows, 'row')}{quick}: {verdict}; "
        f"{_many(errors, 'error')}, {_many(warnings, 'warning')}",
        style="red" if errors else "green",
    )


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _counts_table(checks: Sequence[SiteCheck]) -> Table:
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("site", overflow="fold")
    table.add_column("kind")
    names = ("rows", "images", "texts", "pairs", "patients", "val", "test")
    for name in names:
        table.add_column(name, justify="right")
    for check in checks:
        train, val, test = (check.counts[split] for split in ("train", "val", "test"))
        numbers = (
            *(check.rows, train.images, train.texts, train.pairs, train.patients),
            *(max(val.images, val.texts), max(test.images, test.texts)),
        )
        table.add_row(Text(check.name), check.kind or "-", *(str(n) for n in numbers))
    table.caption = "images to patients: training split; val, test: records"
    return table


def _print_description(site: SiteDescription, console: Console) -> None:
    table = Table(
        title=Text(f"site {site.name}", style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.show_header = False
    for label, value in _description_rows(site):
        table.add_row(label, Text(value))
    console.print(table)
    if site.findings:
        findings = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("finding", "train", "val", "test", "prompts"):
            findings.add_column(name, justify="left" if name == "finding" else "right")
        for finding in site.findings:
            numbers = [str(n) for n in finding.positives.values()]
            findings.add_row(
                Text(finding.finding), *numbers, "yes" if finding.has_prompts else "no"
            )
        console.print(findings)


def _description_rows(site: SiteDescription) -> list[tuple[str, str]]:
    rows = [
        ("kind", (site.kind or "-") + _LEFT_OUT[site.modality]),
        ("origin", site.origin + (f", {site.licence}" if site.licence else "")),
        ("columns", ", ".join(f"{ours} = {theirs}" for ours, theirs in site.columns.items())),
        ("split", site.split_rule),
    ]
    for split, counts in site.splits.items():
        rows.append(
            (
                split,
                f"{_many(counts.images, 'image')}, {_many(counts.texts, 'text')}, "
                f"{_many(counts.pairs, 'pair')}, {_many(counts.patients, 'patient')}, "
                f"{site.labelled[split]} labelled"
                + (f", {noisy} with another's text" if (noisy := site.noisy_pairs[split]) else ""),
            )
        )
    alone = f", {site.without_patient} rows without" if site.without_patient else ""
    most = f"at most {_many(site.most_of_one_patient, 'row')} each"
    rows.append(("patients", f"{site.patients}{alone}, {most}"))
    if any(counts.pairs for counts in site.splits.values()):
        rows.append(("public set", f"proxy.sha256 = {site.pairs_sha256}, if a job has it as one"))
    if site.texts is not None:
        rows += [
            (
                "texts",
                f"{site.texts.distinct} distinct; {site.texts.identical_share:.0%} of the "
                "records share theirs with another",
            ),
            ("words", _at_quantiles(site.texts.words)),
            ("characters", _at_quantiles(site.texts.characters)),
        ]
    if site.images is not None:
        rows += [
            ("formats", _tally(site.images.formats)),
            ("modes", _tally(site.images.modes)),
            ("widths", _at_quantiles(site.images.widths)),
            ("heights", _at_quantiles(site.images.heights)),
            ("repeated", _many(site.images.repeated, "image")),
        ]
    return rows


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _at_quantiles(values: Sequence[int]) -> str:
    names = {0.0: "least", 0.5: "median", 1.0: "most"}
    return ", ".join(
        f"{names.get(q, f'{q:.0%}')} {value}" for q, value in zip(QUANTILES, values, strict=True)
    )


def _print_failure(error: InputError, console: Console) -> int:
    problems = error.problems if isinstance(error, DataError) else ()
    tree = {"ok": False, "error": str(error), "problems": [_tree(p) for p in problems]}
    _print_json(tree, console)
    return _BAD_INPUT


def _check_tree(check: SiteCheck) -> dict[str, Any]:
    return {"ok": check.ok, **_tree(check)}


def _tree(value: Any) -> Any:  # noqa: ANN401 - any dataclass, model, mapping or plain value
    """A frozen dataclass as what JSON can hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value)]
        return {name: _tree(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _tree(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_tree(item) for item in value]
    return value


def _print_json(tree: Any, console: Console) -> None:  # noqa: ANN401 - a tree for JSON
    console.out(json.dumps(tree, ensure_ascii=True, indent=2), highlight=False)
