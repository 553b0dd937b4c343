"""Splits by patient for tables without a split column.

A patient's split depends on the patient id alone, through a hash, so that it is the same
on every machine and stays what it was when patients are added: a patient who was held out
never becomes training data. The shares therefore hold on average, not exactly.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from client.data.records import SplitName

SHARES: Final[Mapping[SplitName, float]] = {"train": 0.70, "val": 0.15, "test": 0.15}
"""Expected share of the patients in each split."""

SPLIT_NAMES: Final[Mapping[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What a split column may say, in any case."""

# Changing the salt moves patients between splits; runs before and after do not compare.
_SALT = b"consilia split 1\x00"


def split_of(patient: str) -> SplitName:
    """Return the split of a patient; the same id gives the same split, everywhere."""
    digest = hashlib.sha256(_SALT + patient.encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < SHARES["train"]:
        return "train"
    return "val" if position < SHARES["train"] + SHARES["val"] else "test"
