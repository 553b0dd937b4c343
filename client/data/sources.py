"""Where a site's records are: one folder per site, or one table with a site column."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from client.data.columns import check_mapping, listed, nearest, resolve
from client.data.dicom_rules import OVERRIDABLE
from client.data.tables import READERS, TABLE_NAMES, Table, read_table
from shared.errors import ConfigError, DataError, DataProblem

Modality = Literal["both", "image", "text"]
_LONGEST_SITE_NAME = 200
SITE_NAME_EXPECTED = "expected a site's name: 1 to 200 printable characters without / or \\"
_PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class SiteSource:
    """One site's records, not yet read.

    Attributes:
        name: The site's name.
        table: The table's file.
        root: Folder that file names are relative to, and must stay in.
        site_column: Column that names the site, if the table holds several.
        columns: Mapping from our column names to the table's.
        modality: ``image`` ignores the texts, ``text`` the images.
        accept: Names of DICOM rules that the site's own policy overrides.
    """

    name: str
    table: Path
    root: Path
    site_column: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    modality: Modality = "both"
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_mapping(self.columns)
        for rule in self.accept:
            if rule not in OVERRIDABLE:
                raise ConfigError(
                    f"accept: {rule!r} is no rule that can be overridden; "
                    f"those are {', '.join(OVERRIDABLE)}"
                )


def find_sites(
    folder: Path,
    *,
    site_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    image_only: Sequence[str] = (),
    text_only: Sequence[str] = (),
    only: Sequence[str] = (),
) -> list[SiteSource]:
    """Find the sites in a folder, sorted by name.

    The folder is a folder of site folders, one site's folder (with ``metadata.csv``,
    ``.jsonl`` or ``.parquet``), or, with ``site_column``, a folder with one such table for
    all sites. A table's file may be given in place of its folder.

    Args:
        folder: Where to look.
        site_column: Column that names the site of each row.
        columns: Mapping from our column names to the table's.
        image_only: Sites whose texts are ignored.
        text_only: Sites whose images are ignored.
        only: Sites to keep; all if empty.

    Raises:
        ConfigError: If the arguments name an unknown site or column.
        DataError: If there is no table, or rows do not name their site.
    """
    mapping = dict(columns or {})
    check_mapping(mapping)
    table = _table_of(folder)
    if site_column is not None:
        sources = _sites_of_table(folder, table, site_column, mapping)
    elif table is not None:
        sources = [SiteSource(_site_name(folder, table), table, table.parent, None, mapping)]
    else:
        sources = _site_folders(folder, mapping, only)
    return select_sites(sources, image_only, text_only, only)


def _table_of(folder: Path) -> Path | None:
    """The table that a path means: itself, or the one in the folder."""
    if folder.is_file():
        if folder.suffix.lower() not in READERS:
            raise ConfigError(f"{folder}: expected a folder or a .csv, .jsonl or .parquet table")
        return folder
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder or table")
    return next((folder / name for name in TABLE_NAMES if (folder / name).is_file()), None)


def _site_name(folder: Path, table: Path) -> str:
    own_folder = folder.is_dir() or table.name in TABLE_NAMES
    return table.resolve().parent.name if own_folder else table.stem


def _site_folders(
    folder: Path, columns: Mapping[str, str], only: Sequence[str]
) -> list[SiteSource]:
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"]
    tables = {path.name: _table_of(path) for path in sorted(inside)}
    found = {name: table for name, table in tables.items() if table is not None}
    if not found:
        raise DataError(
            f"{folder}: no {', '.join(TABLE_NAMES)} in it or in its folders; "
            "see docs/data.md for the format of a site's folder"
        )
    for name in tables:
        # A site that lost its table must not drop out of a run unnoticed.
        if name not in found and (not only or name in only) and _holds_pictures(folder / name):
            raise DataError(
                f"{folder / name}: pictures but no {', '.join(TABLE_NAMES)}; "
                "add the table or move the folder away"
            )
    return [SiteSource(name, table, table.parent, None, columns) for name, table in found.items()]


def _holds_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in _PICTURE_ENDINGS for path in folder.rglob("*"))


def _sites_of_table(
    folder: Path, path: Path | None, site_column: str, columns: Mapping[str, str]
) -> list[SiteSource]:
    if path is None:
        raise DataError(f"{folder}: a site column needs one table: {', '.join(TABLE_NAMES)}")
    table = read_table(path)
    if table.problems and not table.rows:
        raise DataError(f"{path}: {table.problems[0].message}", table.problems)
    if site_column not in table.columns:
        near = nearest(site_column, table.columns)
        hint = f"; did you mean {near!r}?" if near else f"; found {listed(table.columns)}"
        raise ConfigError(f"{path}: no column {site_column!r} that names the site{hint}")
    read_as = [ours for ours, theirs in resolve(table.columns, columns).items()]
    for ours in read_as:
        if resolve(table.columns, columns)[ours] == site_column:
            raise ConfigError(f"site column {site_column!r} is read as {ours} already")
    names = _names_in(table, site_column, path)
    return [SiteSource(name, path, path.parent, site_column, columns) for name in sorted(names)]


def _names_in(table: Table, site_column: str, path: Path) -> set[str]:
    unnamed = unnamed_rows(table, site_column)
    if unnamed:
        raise DataError(
            f"{path}: {len(unnamed)} rows do not name their site in column {site_column!r}, "
            f"the first is row {unnamed[0]}",
            [DataProblem(row, site_column, "site-name", SITE_NAME_EXPECTED) for row in unnamed],
        )
    if not table.rows:
        raise DataError(f"{path}: the table has no rows")
    return {row.cells[site_column].strip() for row in table.rows}


def unnamed_rows(table: Table, site_column: str) -> list[int]:
    """Return the numbers of the rows that do not name their site."""
    cells = ((row.number, row.cells.get(site_column, "").strip()) for row in table.rows)
    return [number for number, name in cells if not _is_site_name(name)]


def _is_site_name(name: str) -> bool:
    return (
        0 < len(name) <= _LONGEST_SITE_NAME
        and name.isprintable()
        and not set(name) & {"/", "\\"}
        and name not in {".", ".."}
    )


def select_sites(
    sources: Sequence[SiteSource],
    image_only: Sequence[str],
    text_only: Sequence[str],
    only: Sequence[str],
) -> list[SiteSource]:
    """Keep the sites that are wanted, and note which modality of each is left out.

    Raises:
        ConfigError: If a name is that of no site, with the nearest that is.
    """
    names = [source.name for source in sources]
    for option, wanted in (("image_only", image_only), ("text_only", text_only), ("sites", only)):
        for name in wanted:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"found {len(names)} other sites"
                raise ConfigError(f"data.{option}: no site {name!r}; {hint}")
    both = sorted(set(image_only) & set(text_only))
    if both:
        raise ConfigError(f"data: {both[0]!r} is both image_only and text_only")
    kept = [source for source in sources if not only or source.name in only]
    return [replace(source, modality=_modality(source, image_only, text_only)) for source in kept]


def _modality(source: SiteSource, image_only: Sequence[str], text_only: Sequence[str]) -> Modality:
    if source.name in image_only:
        return "image"
    return "text" if source.name in text_only else "both"
