"""Rules about what the rows say: texts, labels, pictures that repeat, prompts."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from client.data.entries import LONGEST_FINDING, NOTHING_PRESENT, is_finding
from client.data.inspection import Inspection
from client.data.rules.rule import Complaint, rows_listed

LONGEST_TEXT: Final = 100_000
"""Most characters of a text."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # Unicode's Cc but \t, \n, \r


def text_says_something(site: Inspection) -> Iterator[Complaint]:
    """A cell of blanks claims a text that is not there."""
    for entry in site.entries:
        if entry.text and not entry.text.strip():
            message = "only blanks; write the text, or leave the cell empty for no text"
            yield Complaint(entry.row, site.name_of("text"), message)


def text_is_short_enough(site: Inspection) -> Iterator[Complaint]:
    """No report is that long; something else was put into the cell."""
    for entry in site.entries:
        if len(entry.text) > LONGEST_TEXT:
            message = f"{len(entry.text)} characters; expected at most {LONGEST_TEXT}"
            yield Complaint(entry.row, site.name_of("text"), message)


def text_has_no_control_characters(site: Inspection) -> Iterator[Complaint]:
    """Control characters other than tab and line breaks mean binary content."""
    for entry in site.entries:
        if _CONTROL.search(entry.text):
            message = "control characters; binary content, or damaged on the way"
            yield Complaint(entry.row, site.name_of("text"), message)


def texts_differ(site: Inspection) -> Iterator[Complaint]:
    """One text for all images tells no image from another."""
    texts = [entry.text.strip() for entry in site.in_split("train") if entry.text.strip()]
    if len(texts) > 1 and len(set(texts)) == 1:
        message = f"all {len(texts)} training texts are the same: nothing can be learned from them"
        yield Complaint(None, site.name_of("text"), message)


def picture_shows_something(site: Inspection) -> Iterator[Complaint]:
    """A picture of a single value is an export that went wrong."""
    rows = [row for row, picture in site.pictures.items() if picture.blank]
    if rows:
        message = f"{rows_listed(rows)}: every pixel of the image is the same"
        yield Complaint(rows[0], site.name_of("file_name"), message)


def _same_pictures(site: Inspection) -> list[list[int]]:
    """Rows that show the same picture: the same file, or files of the same bytes."""
    rows: dict[str, list[int]] = defaultdict(list)
    for entry in site.entries:
        if entry.row in site.pictures:
            picture = site.pictures[entry.row]
            rows[picture.digest or f"file {entry.file_name}"].append(entry.row)
    return [group for group in rows.values() if len(group) > 1]


def pictures_differ(site: Inspection) -> Iterator[Complaint]:
    """The same picture in several rows counts several times."""
    groups = _same_pictures(site)
    if groups:
        repeated = [row for group in groups for row in group[1:]]
        message = f"{rows_listed(repeated)}: the same picture as in an earlier row"
        yield Complaint(repeated[0], site.name_of("file_name"), message)


def pictures_stay_in_split(site: Inspection) -> Iterator[Complaint]:
    """A picture in two splits is known before it is tested."""
    split_of = {entry.row: entry.split for entry in site.entries}
    for group in _same_pictures(site):
        first, others = group[0], [row for row in group if split_of[row] != split_of[group[0]]]
        if others:
            message = f"the same picture as {rows_listed(others)}, which is in another split"
            yield Complaint(first, site.name_of("file_name"), message)


def labels_are_names(site: Inspection) -> Iterator[Complaint]:
    """Labels are short names; ``none`` stands alone."""
    for entry in site.entries:
        if not entry.labels.strip():
            continue
        names = [" ".join(name.split()) for name in entry.labels.split(";")]
        column = site.name_of("labels")
        if not all(names):
            yield Complaint(entry.row, column, "an empty name between semicolons")
        elif len(names) > 1 and NOTHING_PRESENT in {name.casefold() for name in names}:
            message = f"{NOTHING_PRESENT} beside a finding; expected either"
            yield Complaint(entry.row, column, message)
        elif not all(is_finding(name) for name in names):
            message = f"expected printable names of up to {LONGEST_FINDING} characters, with ;"
            yield Complaint(entry.row, column, message)


def labels_are_spelled_alike(site: Inspection) -> Iterator[Complaint]:
    """Two spellings of a finding become two findings."""
    first_row: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in site.entries:
        for name in entry.findings or ():
            key = "".join(c for c in name.casefold() if c.isalnum())
            first_row[key].setdefault(name, entry.row)
    for spellings in first_row.values():
        if len(spellings) > 1:
            rows = sorted(spellings.values())
            message = f"{rows_listed(rows)} spell the same finding differently"
            yield Complaint(rows[0], site.name_of("labels"), message)


def findings_have_prompts(site: Inspection) -> Iterator[Complaint]:
    """Findings without prompts are not scored zero-shot."""
    missing = [name for name in site.findings if name not in site.prompts]
    if missing:
        message = (
            f"{len(missing)} of {len(site.findings)} findings have no prompts in prompts.json: "
            "they are not scored zero-shot"
        )
        yield Complaint(None, site.name_of("labels"), message)
