"""Check a site's records: every rule, every row, all problems at once."""

from collections.abc import Mapping
from dataclasses import dataclass

from client.data.inspection import Inspection, inspect_site
from client.data.records import SplitName
from client.data.rules.catalogue import RULES
from client.data.sources import SiteSource
from shared.errors import DataProblem
from shared.results import Kind, SplitCounts


@dataclass(frozen=True)
class SiteCheck:
    """What a check found.

    Attributes:
        name: The site's name.
        rows: Rows of the site's table.
        problems: Everything found, errors first, then by row.
        counts: Images, texts, pairs and patients per split, of what can be used.
        kind: What the training records are; ``None`` if there are none.
        findings: Names of the labels.
        quick: Only the headers of the pictures were read.
    """

    name: str
    rows: int
    problems: tuple[DataProblem, ...]
    counts: Mapping[SplitName, SplitCounts]
    kind: Kind | None
    findings: tuple[str, ...]
    quick: bool = False

    @property
    def errors(self) -> tuple[DataProblem, ...]:
        """Problems that keep the data from being used."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[DataProblem, ...]:
        """Problems that do not."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether the data can be used."""
        return not self.errors


def check_site(source: SiteSource, *, quick: bool = False) -> SiteCheck:
    """Check a site's records and collect all problems.

    Args:
        source: The site.
        quick: Read only the headers of the pictures: truncated files, blank pictures and
            equal pictures under different names are not noticed.
    """
    return checked(inspect_site(source, quick=quick))


def checked(site: Inspection) -> SiteCheck:
    """Apply every rule to what was read of a site."""
    problems = [
        DataProblem(complaint.row, complaint.column, rule.name, complaint.message, rule.severity)
        for rule in RULES
        for complaint in rule.check(site)
    ]
    counts: dict[SplitName, SplitCounts] = {
        "train": count(site, "train"),
        "val": count(site, "val"),
        "test": count(site, "test"),
    }
    return SiteCheck(
        name=site.source.name,
        rows=site.rows,
        problems=tuple(sorted(problems, key=_place)),
        counts=counts,
        kind=_kind(counts["train"]),
        findings=site.findings,
        quick=site.quick,
    )


def _place(problem: DataProblem) -> tuple[bool, bool, int]:
    """Errors first, and among them those of the table itself, of which others may follow."""
    of_table = problem.rule.startswith("table-")
    return problem.severity != "error", not of_table, problem.where or 0


def count(site: Inspection, split: SplitName) -> SplitCounts:
    """Return how many usable images, texts, pairs and patients a split has."""
    entries = site.in_split(split)
    images = {entry.row for entry in entries if entry.row in site.pictures}
    texts = {entry.row for entry in entries if entry.text.strip()}
    return SplitCounts(
        images=len(images),
        texts=len(texts),
        pairs=len(images & texts),
        patients=len({entry.person for entry in entries}),
    )


def _kind(train: SplitCounts) -> Kind | None:
    if train.pairs:
        return "paired"
    if train.images and train.texts:
        return "unpaired"
    if train.images or train.texts:
        return "image" if train.images else "text"
    return None
