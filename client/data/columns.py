"""Which column of a table means what; the names are those of Hugging Face's imagefolder."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Final

from shared.errors import ConfigError

COLUMNS: Final[Mapping[str, str]] = {
    "file_name": "image file, relative to the table's folder",
    "text": "report or caption",
    "labels": "findings, separated by `;`; `none`: nothing present; empty: not labelled",
    "patient_id": "whose record it is; never leaves the site",
    "split": "`train`, `val` or `test`",
}
"""The columns that are read, and what they hold; all others are ignored."""

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {"file_name": ("image",)}
"""Names that are read when ours is absent and not mapped."""

_LONGEST_NAME = 64


def check_mapping(columns: Mapping[str, str]) -> None:
    """Refuse a mapping from unknown names, or of two names to one column.

    Raises:
        ConfigError: With the nearest valid name.
    """
    for ours in columns:
        if ours not in COLUMNS:
            near = difflib.get_close_matches(ours, COLUMNS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"data.columns: unknown name {ours!r}; did you mean {near!r}? "
                f"Names are {', '.join(COLUMNS)}"
            )
    theirs = list(columns.values())
    for ours, column in columns.items():
        if theirs.count(column) > 1:
            raise ConfigError(f"data.columns.{ours} = {column!r}: the column is mapped twice")


def resolve(found: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Return the table's column for each of our names that the table has."""
    resolved: dict[str, str] = {}
    for ours in COLUMNS:
        candidates = [mapping[ours]] if ours in mapping else [ours, *ALIASES.get(ours, ())]
        for candidate in candidates:
            if candidate in found:
                resolved[ours] = candidate
                break
    return resolved


def nearest(wanted: str, found: Iterable[str]) -> str | None:
    """Return the column whose name is most like the wanted one, if one is."""
    by_key = {_key(column): column for column in found if is_name(column)}
    keys = difflib.get_close_matches(_key(wanted), by_key, n=1, cutoff=0.7)
    return by_key[keys[0]] if keys else None


def listed(found: Sequence[str]) -> str:
    """Return the columns' names for a message, or only their number.

    A table without a header has a record in row 1: nothing of it may be quoted.
    """
    if not looks_like_header(found):
        return f"{len(found)} columns"
    shown = ", ".join(repr(column) for column in found[:12])
    return shown + (f" and {len(found) - 12} more" if len(found) > 12 else "")


def looks_like_header(found: Sequence[str]) -> bool:
    """Tell whether row 1 holds names: short, not numbers, not files, not sentences."""
    return bool(found) and all(is_name(column) for column in found if column)


def is_name(column: str) -> bool:
    """Tell whether a cell may be a column's name rather than a record's content."""
    suffix = PurePath(column).suffix.lower()
    return (
        0 < len(column) <= _LONGEST_NAME
        and not column.replace(".", "").replace("-", "").isdigit()
        and suffix not in {".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff", ".webp", ".bmp"}
        and column.count(" ") < 6
        and column.isprintable()
    )


def _key(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())
