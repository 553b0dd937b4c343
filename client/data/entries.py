"""A table's rows as a site means them: columns mapped, modality applied, split assigned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from client.data.records import SplitName
from client.data.sources import SiteSource
from client.data.splits import SPLIT_NAMES, split_of
from client.data.tables import Row

NOTHING_PRESENT: Final = "none"
"""A label cell that says: looked at, nothing found."""
LONGEST_FINDING: Final = 64
"""Most characters of a finding's name."""


@dataclass(frozen=True)
class Entry:
    """One row; empty strings where a cell is empty or the column absent.

    Attributes:
        row: The row's number as a person counts it.
        file_name: Image, relative to the site's root; empty if texts only are wanted.
        text: As written; empty if images only are wanted.
        labels: As written.
        patient: The patient id; never shown.
        person: What tells people apart: the patient id, or the row itself where it has none.
        split: Given or derived; ``None`` if the table says something unknown.
        ignored: The row has a record, but of the modality that the site leaves out.
    """

    row: int
    file_name: str
    text: str
    labels: str
    patient: str
    person: str
    split: SplitName | None
    ignored: bool = False

    @property
    def findings(self) -> tuple[str, ...] | None:
        """Findings present; empty for ``none``, ``None`` if the row is not labelled."""
        if not self.labels.strip():
            return None
        names = [" ".join(name.split()) for name in self.labels.split(";")]
        return tuple(name for name in names if name and name.casefold() != NOTHING_PRESENT)


def is_finding(name: str) -> bool:
    """Tell whether a label can be a finding's name: printable and not a sentence."""
    return len(name) <= LONGEST_FINDING and name.isprintable()


def read_entry(row: Row, source: SiteSource, columns: Mapping[str, str]) -> Entry:
    """Return a row's entry; ``columns`` maps our names to those that the table has."""
    cells = {ours: row.cells.get(theirs, "") for ours, theirs in columns.items()}
    file_name, text = cells.get("file_name", "").strip(), cells.get("text", "")
    patient = cells.get("patient_id", "").strip()
    # Without a patient id the split follows the record's own content, so that it does not
    # change when rows are added, and a text or file that occurs twice stays in one split.
    person = f"patient\x00{patient}" if patient else f"row\x00{row.number}"
    key = f"patient\x00{patient}" if patient else f"record\x00{file_name or text}"
    if "split" in columns:
        split = SPLIT_NAMES.get(cells["split"].strip().casefold())
    else:
        split = split_of(key)
    keeps_image, keeps_text = source.modality != "text", source.modality != "image"
    kept = (file_name if keeps_image else "", text if keeps_text else "")
    return Entry(
        row=row.number,
        file_name=kept[0],
        text=kept[1],
        labels=cells.get("labels", ""),
        patient=patient,
        person=person,
        split=split,
        ignored=not any(kept) and bool(file_name or text),
    )
