"""Rules about patients and splits: nobody in two splits, and enough to train on."""

from collections import defaultdict
from collections.abc import Iterator

from client.data.inspection import Inspection
from client.data.records import SplitName
from client.data.rules.rule import Complaint, rows_listed
from client.data.splits import SHARES


def split_is_known(site: Inspection) -> Iterator[Complaint]:
    """A split column must name a split in every row."""
    for entry in site.entries:
        if entry.split is None:
            message = "empty or unknown split; expected train, val or test"
            yield Complaint(entry.row, site.name_of("split"), message)


def split_is_given(site: Inspection) -> Iterator[Complaint]:
    """Without a split column the split follows from the patient id."""
    if site.entries and "split" not in site.columns and "split" not in site.source.columns:
        shares = "/".join(str(round(100 * share)) for share in SHARES.values())
        message = f"no such column: patients are split {shares} by a hash of their id"
        yield Complaint(None, "split", message)


def patient_is_given(site: Inspection) -> Iterator[Complaint]:
    """A row without a patient counts as a patient of its own."""
    rows = [entry.row for entry in site.entries if not entry.patient]
    if rows:
        which = "every row" if len(rows) == len(site.entries) else rows_listed(rows)
        message = (
            f"no patient in {which}: each counts as its own, so one person may be in two splits "
            "and intervals may be too narrow"
        )
        column = "patient_id" in site.columns
        yield Complaint(rows[0] if column else None, site.name_of("patient_id"), message)


def patient_is_in_one_split(site: Inspection) -> Iterator[Complaint]:
    """A patient in two splits is known before being tested."""
    rows: dict[str, dict[SplitName, list[int]]] = defaultdict(lambda: defaultdict(list))
    for entry in site.entries:
        if entry.patient and entry.split is not None:
            rows[entry.patient][entry.split].append(entry.row)
    for by_split in rows.values():
        if len(by_split) > 1:
            where = "; ".join(f"{split}: {rows_listed(rows)}" for split, rows in by_split.items())
            first = min(row for listed in by_split.values() for row in listed)
            message = f"one patient in {len(by_split)} splits ({where}); keep each in one"
            yield Complaint(first, site.name_of("patient_id"), message)


def splits_are_filled(site: Inspection) -> Iterator[Complaint]:
    """Without validation nothing can be chosen, without test nothing measured."""
    what = {
        "val": "no validation records: the personal adapter cannot be chosen",
        "test": "no test records: the site cannot be scored",
    }
    for split in ("val", "test"):
        if site.entries and not site.in_split(split):
            yield Complaint(None, site.name_of("split"), what[split])


def has_training_records(site: Inspection) -> Iterator[Complaint]:
    """A site that takes part has something to train on."""
    if site.entries and not site.in_split("train"):
        yield Complaint(None, site.name_of("split"), "no training records; expected at least 2")


def towers_have_enough(site: Inspection) -> Iterator[Complaint]:
    """One record has nothing to be told apart from."""
    train = site.in_split("train")
    for ours, other, count in (
        ("file_name", "text_only", sum(bool(entry.file_name) for entry in train)),
        ("text", "image_only", sum(bool(entry.text.strip()) for entry in train)),
    ):
        if count == 1:
            what = "image" if ours == "file_name" else "text"
            message = f"one {what} to train on; expected at least 2, or list the site in {other}"
            yield Complaint(None, site.name_of(ours), message)


def pairs_are_enough(site: Inspection) -> Iterator[Complaint]:
    """A single pair makes a paired site that has nothing to contrast."""
    train = site.in_split("train")
    rows = [entry.row for entry in train if entry.file_name and entry.text.strip()]
    if len(rows) == 1 and len(train) > 1:
        message = "the only pair of image and text to train on; expected none or at least 2"
        yield Complaint(rows[0], None, message)
