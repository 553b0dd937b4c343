"""Read a site once: table, rows, pictures and companion files, with what went wrong.

The rules (``client.data.check``), the description and the loader all look at the same
inspection, so that no picture is decoded twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from client.data.columns import resolve
from client.data.entries import Entry, is_finding, read_entry
from client.data.files import read_dataset, read_prompts
from client.data.images import Picture, read_picture
from client.data.records import Prompts, SplitName
from client.data.sources import SiteSource
from client.data.tables import Table, read_table
from shared.errors import DataError, DataProblem
from shared.results import DatasetOrigin

Visit = Callable[[Entry, Image.Image], None]
"""Called with every usable picture, in mode ``L`` or ``RGB``, while it is in memory."""


@dataclass(frozen=True)
class Inspection:
    """Everything that is known of a site's records.

    Attributes:
        source: The site.
        table: The table with its columns; its rows may be those of several sites.
        columns: The table's column for each of our names that it has.
        rows: How many rows of the table are the site's.
        entries: The site's rows, apart from those whose only content is left out.
        ignored: Numbers of the rows whose only content is of the modality left out.
        pictures: By row number, for the rows whose picture can be used.
        prompts: From ``prompts.json``.
        origin: From ``dataset.json``.
        quick: Only the headers of the pictures were read.
        found: Problems that were found while reading; the rules pass them on.
    """

    source: SiteSource
    table: Table
    columns: Mapping[str, str]
    rows: int
    entries: tuple[Entry, ...]
    ignored: tuple[int, ...]
    pictures: Mapping[int, Picture]
    prompts: Mapping[str, Prompts]
    origin: DatasetOrigin
    quick: bool
    found: tuple[DataProblem, ...]

    def name_of(self, ours: str) -> str:
        """Return the table's name of a column, for a message."""
        return self.columns.get(ours, ours)

    def in_split(self, split: SplitName) -> list[Entry]:
        """Return the rows of a split."""
        return [entry for entry in self.entries if entry.split == split]

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """Names of all findings in the labels, sorted; what cannot be a name is left out."""
        names = {name for entry in self.entries for name in entry.findings or ()}
        return tuple(sorted(name for name in names if is_finding(name)))


def inspect_site(
    source: SiteSource, *, quick: bool = False, visit: Visit | None = None
) -> Inspection:
    """Read everything of a site; problems are collected, not raised."""
    table = read_table(source.table)
    columns = resolve(table.columns, source.columns)
    rows = [
        row
        for row in table.rows
        if source.site_column is None
        or row.cells.get(source.site_column, "").strip() == source.name
    ]
    readable = "file_name" in columns or "text" in columns
    entries = [read_entry(row, source, columns) for row in rows] if readable else []
    kept = tuple(entry for entry in entries if not entry.ignored)
    others = {row.number for row in table.rows} - {row.number for row in rows}
    found = [problem for problem in table.problems if problem.where not in others]
    pictures = _read_pictures(source, kept, columns, found, quick, visit)
    prompts, prompt_problems = read_prompts(source)
    origin, dataset_problems = read_dataset(source)
    return Inspection(
        source=source,
        table=table,
        columns=columns,
        rows=len(rows),
        entries=kept,
        ignored=tuple(entry.row for entry in entries if entry.ignored),
        pictures=pictures,
        prompts=prompts,
        origin=origin,
        quick=quick,
        found=(*found, *prompt_problems, *dataset_problems),
    )


def _read_pictures(
    source: SiteSource,
    entries: tuple[Entry, ...],
    columns: Mapping[str, str],
    found: list[DataProblem],
    quick: bool,
    visit: Visit | None,
) -> dict[int, Picture]:
    pictures: dict[int, Picture] = {}
    root = source.root.resolve()
    for entry in entries:
        if not entry.file_name:
            continue
        try:
            path = _inside(root, entry.file_name)
            picture, image = read_picture(path, quick=quick, accept=source.accept)
        except DataError as error:
            column = columns["file_name"]
            found += [replace(p, where=entry.row, column=column) for p in error.problems]
            continue
        pictures[entry.row] = picture
        if visit is not None and image is not None:
            visit(entry, image)
    return pictures


def _inside(root: Path, name: str) -> Path:
    """The file that a cell names, which must lie in the site's folder, links followed."""
    parts = PurePosixPath(name).parts
    unusual = name.startswith(("/", "~")) or ".." in parts or "\\" in name or name[1:2] == ":"
    if not unusual and name.isprintable():
        try:
            path = (root / name).resolve()
        except (OSError, ValueError, RuntimeError):
            path = Path()
        if path.is_relative_to(root):
            return path
    message = "expected a path inside the site's folder, relative to it, with / between folders"
    raise DataError(message, [DataProblem(None, None, "image-path", message)])
