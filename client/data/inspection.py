"""Read a site once: table, rows, companion files and pictures, with what went wrong.

The rules (``client.data.check``), the description and the loader all look at the same
inspection, so that no picture is decoded twice.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from client.data.columns import resolve
from client.data.entries import Entry, is_finding, read_entry
from client.data.files import read_dataset, read_prompts
from client.data.images import NOTHING_KNOWN, Picture, read_picture
from client.data.records import Prompts, SplitName
from client.data.sources import SiteSource
from client.data.tables import Table, read_table
from shared.errors import DataError, DataProblem
from shared.results import DatasetOrigin

Visit = Callable[[Entry, Picture, Image.Image], None]
"""Called with every picture that was decoded, in mode ``L`` or ``RGB``, while it is in memory."""


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


def inspect_site(source: SiteSource, *, quick: bool = False) -> Inspection:
    """Read everything of a site; problems are collected, not raised."""
    return with_pictures(read_rows(source), quick=quick)


def read_rows(source: SiteSource) -> Inspection:
    """Read a site's table and companion files; no picture has been opened yet."""
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
    others = {row.number for row in table.rows} - {row.number for row in rows}
    found = [problem for problem in table.problems if problem.where not in others]
    prompts, prompt_problems = read_prompts(source)
    origin, dataset_problems = read_dataset(source)
    return Inspection(
        source=source,
        table=table,
        columns=columns,
        rows=len(rows),
        entries=tuple(entry for entry in entries if not entry.ignored),
        ignored=tuple(entry.row for entry in entries if entry.ignored),
        pictures={},
        prompts=prompts,
        origin=origin,
        quick=False,
        found=(*found, *prompt_problems, *dataset_problems),
    )


def with_pictures(
    site: Inspection,
    *,
    quick: bool = False,
    known: Mapping[str, Picture] = NOTHING_KNOWN,
    visit: Visit | None = None,
) -> Inspection:
    """Read the pictures of a site whose rows have been read.

    Args:
        site: From ``read_rows``.
        quick: Read their headers only.
        known: Pictures that need not be decoded again, by digest of the file.
        visit: Called with those that are decoded.
    """
    pictures: dict[int, Picture] = {}
    found: list[DataProblem] = []
    places = _Places(site.source.root)
    for entry in site.entries:
        if not entry.file_name:
            continue
        try:
            path = places.find(entry.file_name)
            picture, image = read_picture(path, quick=quick, accept=site.source.accept, known=known)
        except DataError as error:
            column = site.columns["file_name"]
            found += [replace(p, where=entry.row, column=column) for p in error.problems]
            continue
        pictures[entry.row] = picture
        if visit is not None and image is not None:
            visit(entry, picture, image)
    return replace(site, pictures=pictures, quick=quick, found=(*site.found, *found))


class _Places:
    """Finds the files that cells name; they must lie in the site's folder, links followed."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._folders: dict[str, Path | None] = {}

    def find(self, name: str) -> Path:
        """Return a file's path.

        Raises:
            DataError: ``image-path`` if it is not inside.
        """
        unusual = (
            name.startswith(("/", "~"))
            or ".." in name.split("/")
            or "\\" in name
            or name[1:2] == ":"
        )
        if not unusual and name.isprintable():
            folder, last = os.path.split(name)
            # Following links takes longer than reading a small picture: once for each folder.
            if folder not in self._folders:
                self._folders[folder] = self._inside(self._root / folder)
            known = self._folders[folder]
            path = None if known is None or last in {"", "."} else known / last
            # Unlike Path.is_symlink, islink is False for a name that is too long to look up.
            if path is None or os.path.islink(path):  # noqa: PTH114
                path = self._inside(self._root / name)
            if path is not None:
                return path
        message = "expected a path inside the site's folder, relative to it, with / between folders"
        raise DataError(message, [DataProblem(None, None, "image-path", message)])

    def _inside(self, path: Path) -> Path | None:
        try:
            path = path.resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(self._root) else None
