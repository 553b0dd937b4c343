"""A site's pairs by their content: what tells one public set from another."""

import hashlib
from collections.abc import Iterator

from client.data.entries import Entry
from client.data.inspection import Inspection
from client.data.records import SplitName


def pairs_digest(inspected: Inspection) -> str:
    """Return the sha256 of all pairs' files and texts, whatever encoder they are for."""
    digest = hashlib.sha256()
    for entry in _paired_entries(inspected):
        picture = inspected.pictures[entry.row]
        digest.update(repr((picture.digest, entry.text.strip())).encode())
    return digest.hexdigest()


def _paired_entries(inspected: Inspection) -> Iterator[Entry]:
    names: tuple[SplitName, ...] = ("test", "train", "val")  # sorted, as the pairs are
    for name in names:
        for entry in inspected.in_split(name):
            if entry.row in inspected.pictures and entry.text.strip():
                yield entry
