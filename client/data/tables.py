"""Tables as rows of strings: CSV, JSON Lines or Parquet, with rows numbered as a person does.

In CSV and Parquet the header is row 1 and the first record row 2, as a spreadsheet shows
them; in JSON Lines the number is the line. Reading never stops at the first problem.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from shared.errors import DataProblem

TABLE_NAMES: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of a site's table; the first that exists is read."""

# A cell may be long (a rule limits texts), but not so long that it fills the memory.
_LARGEST_CELL = 64 * 2**20
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """One record: its number as a person counts it, and its cells by column."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table and what was wrong with it; a damaged table has the rows that could be read."""

    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    problems: tuple[DataProblem, ...] = ()


@dataclass
class _Draft:
    columns: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    problems: list[DataProblem] = field(default_factory=list)

    def refuse(self, rule: str, message: str, row: int | None = None, column: str = "") -> None:
        self.problems.append(DataProblem(row, column or None, rule, message))


def read_table(path: Path) -> Table:
    """Read a whole table; what cannot be read is in the table's ``problems``.

    The last table is kept in memory, because a table with a site column is read once for
    every site; a changed file is read again.
    """
    try:
        status = path.stat()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Table(problems=(_unreadable(f"cannot be opened: {reason}"),))
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, _modified: int, _size: int) -> Table:
    draft = _Draft()
    try:
        READERS[path.suffix.lower()](path, draft)
    except OSError as error:
        draft.refuse("table-unreadable", f"cannot be read: {error.strerror or 'input error'}")
    return Table(draft.columns, tuple(draft.rows), tuple(draft.problems))


def _unreadable(message: str) -> DataProblem:
    return DataProblem(None, None, "table-unreadable", f"the table {message}")


def _read_csv(path: Path, draft: _Draft) -> None:
    if _is_utf16(path, draft):
        return
    limit = csv.field_size_limit(_LARGEST_CELL)
    try:
        # Bytes that are not UTF-8 become surrogates, so that a rule can name their rows.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            _csv_rows(csv.reader(file, strict=True), draft)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(reader: Iterator[list[str]], draft: _Draft) -> None:
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if number == 1:
                draft.columns = _header([cell.strip() for cell in cells], draft)
            elif cells:
                _csv_row(number, cells, draft)
    except csv.Error:
        draft.refuse(
            "table-unreadable",
            "not valid CSV from this row on: a quotation mark is not closed or not doubled, or "
            "a cell is over 64 MiB",
            row=number + 1,
        )


def _csv_row(number: int, cells: list[str], draft: _Draft) -> None:
    if len(cells) != len(draft.columns):
        draft.refuse(
            "row-length",
            f"{len(cells)} cells under {len(draft.columns)} columns; a text with a comma or a "
            "line break needs quotation marks",
            row=number,
        )
    cells = cells + [""] * (len(draft.columns) - len(cells))
    draft.rows.append(Row(number, dict(zip(draft.columns, cells, strict=False))))


def _header(columns: Sequence[str], draft: _Draft) -> tuple[str, ...]:
    for other in (";", "\t"):
        if len(columns) == 1 and other in columns[0]:
            name = "tabs" if other == "\t" else "semicolons"
            draft.refuse("table-header", f"cells are separated by {name}; use commas", row=1)
    for column in dict.fromkeys(columns):
        if column and columns.count(column) > 1:
            draft.refuse(
                "column-duplicate", "the column is there more than once", row=1, column=column
            )
    return tuple(columns)


def _is_utf16(path: Path, draft: _Draft) -> bool:
    with path.open("rb") as file:
        if file.read(2) not in _UTF16_MARKS:
            return False
    draft.refuse("table-encoding", "the table is UTF-16; save it as UTF-8")
    return True


def _read_jsonl(path: Path, draft: _Draft) -> None:
    if _is_utf16(path, draft):
        return
    columns: dict[str, None] = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                pairs = json.loads(line, object_pairs_hook=list)
            except (ValueError, RecursionError):
                draft.refuse("table-unreadable", "not a JSON object on one line", row=number)
                continue
            if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
                draft.refuse("table-unreadable", "not a JSON object on one line", row=number)
                continue
            _jsonl_row(number, pairs, columns, draft)
    draft.columns = tuple(columns)


def _jsonl_row(
    number: int, pairs: list[tuple[str, Any]], columns: dict[str, None], draft: _Draft
) -> None:
    cells: dict[str, str] = {}
    for column, value in pairs:
        if column in cells:
            draft.refuse("column-duplicate", "the key is there twice", row=number, column=column)
        columns.setdefault(column)
        cells[column] = _cell(value, number, column, draft)
    draft.rows.append(Row(number, cells))


def _read_parquet(path: Path, draft: _Draft) -> None:
    # PyArrow takes a third of a second to import; only sites with Parquet pay for it.
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    try:
        table = pyarrow.parquet.read_table(path)
        values = [column.to_pylist() for column in table.columns]
    except (pyarrow.ArrowException, ValueError) as error:
        draft.refuse("table-unreadable", f"not a readable Parquet file ({type(error).__name__})")
        return
    draft.columns = _header(table.column_names, draft)
    for index in range(table.num_rows):
        number = index + 2
        cells = {
            column: _cell(values[place][index], number, column, draft)
            for place, column in enumerate(draft.columns)
        }
        draft.rows.append(Row(number, cells))


def _cell(value: object, number: int, column: str, draft: _Draft) -> str:
    """A JSON or Parquet value as text: null is an empty cell, a list is joined by ``;``."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Iterable) and value and _is_words(value):
        return ";".join(value)
    if isinstance(value, bytes | Iterable):
        draft.refuse(
            "cell-type",
            "expected text, a number, null or a list of words, not bytes, an object or an empty "
            "list (write null for not labelled, none for nothing present)",
            row=number,
            column=column,
        )
        return ""
    return str(value)


def _is_words(value: Iterable[Any]) -> bool:
    # object_pairs_hook turns objects into lists of tuples, which are no words.
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


READERS: Mapping[str, Callable[[Path, _Draft], None]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""How a table is read, by its file name's ending."""
