"""Rules about the table: its columns, its cells, and rows that say nothing."""

import re
from collections.abc import Iterator

from client.data.columns import COLUMNS, is_name, listed, looks_like_header, nearest
from client.data.inspection import Inspection
from client.data.rules.rule import Complaint, rows_listed
from client.data.sources import SITE_NAME_EXPECTED, unnamed_rows
from client.data.tables import TABLE_NAMES

_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDERS = {"nan", "null", "n/a", "na", "none", "<na>", "-"}


def has_header(site: Inspection) -> Iterator[Complaint]:
    """Row 1 must hold names; and the separator must be a comma (found while reading)."""
    for problem in site.found:
        if problem.rule == "table-header":
            yield Complaint(problem.where, None, problem.message)
    if site.table.columns and not looks_like_header(site.table.columns):
        yield Complaint(
            1, None, "row 1 holds a record, a number or a file where column names are expected"
        )


def has_utf8_cells(site: Inspection) -> Iterator[Complaint]:
    """Bytes that are not UTF-8 were read as lone surrogates."""
    for problem in site.found:
        if problem.rule == "table-encoding":
            yield Complaint(None, None, problem.message)
    for entry in site.entries:
        cells = {
            "file_name": entry.file_name,
            "text": entry.text,
            "labels": entry.labels,
            "patient_id": entry.patient,
        }
        for ours, cell in cells.items():
            if _SURROGATE.search(cell):
                message = "bytes that are not UTF-8; save the table as UTF-8"
                yield Complaint(entry.row, site.name_of(ours), message)


def has_needed_columns(site: Inspection) -> Iterator[Complaint]:
    """Mapped columns must exist, and one of image and text must."""
    found = site.table.columns
    if not found:
        return
    for ours, theirs in site.source.columns.items():
        if theirs not in found:
            yield _missing(theirs, f"mapped to {ours}, but not in the table", found)
    if not {"file_name", "text"} & {*site.columns, *site.source.columns}:
        yield _missing("file_name", "neither file_name nor text is in the table", found)


def _missing(wanted: str, what: str, found: tuple[str, ...]) -> Complaint:
    near = nearest(wanted, found) if looks_like_header(found) else None
    hint = f"did you mean {near!r}? " if near else ""
    return Complaint(None, wanted, f"{what}; {hint}found {listed(found)}")


def has_both_modalities(site: Inspection) -> Iterator[Complaint]:
    """A missing image or text column makes a site of one modality, maybe by a typing error."""
    if site.source.modality != "both" or not site.columns:
        return
    for ours, other in (("file_name", "text"), ("text", "images")):
        if ours not in site.columns and ours not in site.source.columns:
            near = nearest(ours, site.table.columns)
            hint = f"; did you mean {near!r}? Map it" if near else ""
            yield Complaint(None, ours, f"no such column, so the site has {other} only{hint}")


def reads_near_columns(site: Inspection) -> Iterator[Complaint]:
    """A column with almost one of our names is probably meant to be read."""
    unread = [name for name in site.table.columns if name not in site.columns.values()]
    for ours in COLUMNS:
        near = None if ours in site.columns else nearest(ours, [n for n in unread if is_name(n)])
        if near is not None and ours not in {"file_name", "text"}:
            yield Complaint(None, near, f"not read; rename it to {ours} or map it if it is that")


def is_only_table(site: Inspection) -> Iterator[Complaint]:
    """Several tables in one folder: only one is read."""
    path = site.source.table
    others = [n for n in TABLE_NAMES if n != path.name and (path.parent / n).is_file()]
    if path.name in TABLE_NAMES and others:
        yield Complaint(None, None, f"{path.name} is read; {', '.join(others)} beside it is not")


def has_rows(site: Inspection) -> Iterator[Complaint]:
    """A table that could be read has at least one row."""
    if not site.rows and not site.table.problems:
        yield Complaint(None, None, "the table has no rows; expected one per record")


def names_its_site(site: Inspection) -> Iterator[Complaint]:
    """In a table for several sites, a row without a site would belong to nobody."""
    if site.source.site_column is not None:
        for row in unnamed_rows(site.table, site.source.site_column):
            yield Complaint(row, site.source.site_column, SITE_NAME_EXPECTED)


def has_content(site: Inspection) -> Iterator[Complaint]:
    """A row is a record only if it has an image or a text."""
    for entry in site.entries:
        if not entry.file_name and not entry.text:
            yield Complaint(entry.row, None, "neither an image nor a text; fill or delete the row")


def has_wanted_content(site: Inspection) -> Iterator[Complaint]:
    """Rows whose only content is of the modality that this run leaves out are not used."""
    if site.ignored:
        wanted = "images" if site.source.modality == "image" else "texts"
        message = f"{rows_listed(site.ignored)} not used: only {wanted} are wanted of this site"
        yield Complaint(site.ignored[0], None, message)


def has_no_placeholders(site: Inspection) -> Iterator[Complaint]:
    """Programs write ``nan`` or ``NULL`` where a person leaves a cell empty."""
    for ours in ("text", "patient_id"):
        rows = [
            entry.row
            for entry in site.entries
            if (entry.text if ours == "text" else entry.patient).strip().casefold() in _PLACEHOLDERS
        ]
        if rows:
            message = f"{rows_listed(rows)}: reads like an empty cell of a program; leave it empty"
            yield Complaint(rows[0], site.name_of(ours), message)
