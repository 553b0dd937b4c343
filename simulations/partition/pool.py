"""All records of all sites as one population; the order of the tables' rows does not matter."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from client.data.check import checked
from client.data.columns import listed, nearest
from client.data.entries import NOTHING_PRESENT, Entry
from client.data.files import companion, read_dataset
from client.data.inspection import Inspection, read_rows
from client.data.records import Prompts, SplitName
from client.data.rules.rule import rows_listed
from client.data.sources import SiteSource
from shared.errors import ConfigError, DataError, DataProblem
from shared.results import DatasetOrigin

SOURCE_COLUMN = "source_site"
"""Stands for the name of the site that a record was given with."""
NOT_LABELLED = "not labelled"

# Rules about what a table says of itself; those about pictures and numbers hold for the new sites.
_PREFIXES = (
    *("table-", "column-", "row-", "cell-", "labels-", "split-", "patient-"),
    *("prompts-", "dataset-"),
)


@dataclass(frozen=True, order=True)
class Record:
    """One row, of which any site may get a copy.

    Attributes:
        source: The site that it was given with.
        person: What tells patients apart in the whole population; never shown.
        split: Given or derived.
        file_name: Relative to the population's root; empty if there is none.
        text: As written.
        labels: As written.
        patient: To be written; empty if the row has none.
        value: Of the partition's column.
        row: Its number in its own table.
    """

    source: str
    person: str
    split: SplitName
    file_name: str
    text: str
    labels: str
    patient: str
    value: str
    row: int

    @property
    def findings(self) -> tuple[str, ...] | None:
        """Findings present; empty for ``none``, ``None`` if the row is not labelled."""
        if not self.labels.strip():
            return None
        names = [" ".join(name.split()) for name in self.labels.split(";")]
        return tuple(n for n in names if n and n.casefold() != NOTHING_PRESENT)


@dataclass(frozen=True)
class Pool:
    """The population.

    Attributes:
        root: Folder that all pictures lie in.
        records: Sorted.
        prompts: By the site that they were given with.
        origins: Likewise.
    """

    root: Path
    records: tuple[Record, ...]
    prompts: Mapping[str, Mapping[str, Prompts]]
    origins: Mapping[str, DatasetOrigin]

    @cached_property
    def persons(self) -> Mapping[str, tuple[Record, ...]]:
        """Every patient's records, patients in the order of their keys."""
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            found[record.person].append(record)
        return {person: tuple(found[person]) for person in sorted(found)}


def read_pool(sources: Sequence[SiteSource], root: Path, column: str | None = None) -> Pool:
    """Read the tables of all sites; pictures are not opened.

    Args:
        sources: The sites as they are given.
        root: A folder that all their pictures lie in.
        column: A column whose values the records keep: of the tables, a key of the sites'
            ``dataset.json``, or ``source_site``.

    Raises:
        ConfigError: If no site has the column.
        DataError: If a table cannot be used, or a patient is in two splits.
    """
    records: list[Record] = []
    prompts, origins = {}, {}
    one_table = len({source.table for source in sources}) == 1
    for source in sources:
        site = read_rows(source)
        errors = [p for p in checked(site).errors if p.rule.startswith(_PREFIXES)]
        if errors:
            raise DataError(
                f"site {source.name!r}: {len(errors)} problem{'s' if len(errors) > 1 else ''} in "
                f"its data; the first: {errors[0].message} [{errors[0].rule}]",
                errors,
            )
        values = _values(site, column)
        space = "" if one_table else f"{source.name}/"
        prefix = _prefix(source, root)
        records += [_record(source.name, e, values[e.row], space, prefix) for e in site.entries]
        prompts[source.name], origins[source.name] = site.prompts, read_dataset(source)[0]
    _refuse_two_splits(records)
    if column is not None and not any(record.value for record in records):
        raise ConfigError(f"partition.column = {column!r}: {_where(sources, column)}")
    return Pool(root, tuple(sorted(records)), prompts, origins)


def _record(source: str, entry: Entry, value: str, space: str, prefix: str) -> Record:
    if entry.split is None:
        raise ValueError("a rule refuses rows without a split")
    if entry.patient:
        person = f"patient\x00{space}{entry.patient}"
    elif entry.file_name:
        person = f"file\x00{source}\x00{entry.file_name}"
    else:
        person = f"text\x00{source}\x00{entry.split}\x00{entry.text}"
    return Record(
        source=source,
        person=person,
        split=entry.split,
        file_name=prefix + entry.file_name if entry.file_name else "",
        text=entry.text,
        labels=entry.labels,
        patient=space + entry.patient if entry.patient else "",
        value=value,
        row=entry.row,
    )


def _prefix(source: SiteSource, root: Path) -> str:
    own, common = source.root.resolve(), root.resolve()
    if not own.is_relative_to(common):
        raise ConfigError(
            f"{source.root}: is a link out of {root}; a partition needs all pictures below one "
            "folder, so move the site there"
        )
    below = own.relative_to(common).as_posix()
    return "" if below == "." else f"{below}/"


def _values(site: Inspection, column: str | None) -> dict[int, str]:
    """The column's value in each row; what the whole site says of itself stands for all rows."""
    if column is None:
        return dict.fromkeys((entry.row for entry in site.entries), "")
    whole = site.source.name if column == SOURCE_COLUMN else _said_of_site(site.source, column)
    cells = {row.number: row.cells.get(column, "").strip() for row in site.table.rows}
    return {entry.row: cells[entry.row] or whole for entry in site.entries}


def _said_of_site(source: SiteSource, key: str) -> str:
    path = companion(source, "dataset.json")
    if path is None:
        return ""
    value = json.loads(path.read_text(encoding="utf-8-sig")).get(key, "")
    return value.strip() if isinstance(value, str) else ""


def _where(sources: Sequence[SiteSource], column: str) -> str:
    found = tuple(read_rows(sources[0]).table.columns)
    near = nearest(column, (*found, SOURCE_COLUMN))
    hint = f"did you mean {near!r}?" if near else f"found {listed(found)}"
    return f"no record has a value in it; {hint}"


def _refuse_two_splits(records: Sequence[Record]) -> None:
    splits: dict[str, set[SplitName]] = defaultdict(set)
    for record in records:
        splits[record.person].add(record.split)
    rows = sorted(r.row for r in records if len(splits[r.person]) > 1)
    if rows:
        # Also over sites: nobody may train at one and be tested at another.
        count = sum(len(found) > 1 for found in splits.values())
        message = f"{count} patients in several splits, {rows_listed(rows)}; keep each in one"
        raise DataError(
            f"partition: {message}", [DataProblem(rows[0], None, "patient-in-two-splits", message)]
        )


def classes_of_labels(pool: Pool) -> dict[str, str]:
    """Return each patient's class: the finding that most of the records show.

    Ties go to the finding that fewer patients have, then to the first by name. ``none`` if
    nothing was present, ``not labelled`` if nobody looked.
    """
    shown = {
        person: Counter(name for r in records for name in r.findings or ())
        for person, records in pool.persons.items()
    }
    patients = Counter(name for counts in shown.values() for name in counts)
    classes = {}
    for person, counts in shown.items():
        if counts:
            classes[person] = min(counts, key=lambda n: (-counts[n], patients[n], n))
        else:
            looked = any(r.findings is not None for r in pool.persons[person])
            classes[person] = NOTHING_PRESENT if looked else NOT_LABELLED
    return classes


def classes_of_column(pool: Pool) -> dict[str, str]:
    """Return each patient's most frequent value of the column, the first by name of several."""
    classes = {}
    for person, records in pool.persons.items():
        counts = Counter(record.value for record in records if record.value)
        classes[person] = min(counts, key=lambda v: (-counts[v], v)) if counts else ""
    return classes
