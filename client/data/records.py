"""What a site's records look like once they are loaded; NumPy only."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.adapter import Tower
from shared.results import DatasetOrigin, Kind, SplitCounts

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Prompts:
    """Texts that assert and that deny one finding, in the site's own words."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Records of one split; row i of every array is one record.

    A record without an image has ``has_image[i] == False`` and zeros in ``pixels``; one
    without a text has ``has_text[i] == False`` and an empty string. What lies behind a mask
    must never change an output.

    Attributes:
        pixels: (n, height, width, channels) uint8 at the encoder's size, channels 1 or 3;
            an array or a read-only memory map.
        has_image: (n,) bool.
        texts: n strings.
        has_text: (n,) bool.
        labels: (n, findings) float32, 1 present, 0 absent; zeros where not labelled.
        labelled: (n,) bool.
        patients: (n,) int64, the patient's number within the site.
    """

    pixels: NDArray[np.uint8]
    has_image: NDArray[np.bool_]
    texts: tuple[str, ...]
    has_text: NDArray[np.bool_]
    labels: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    patients: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> "Split":
        """Return the first records, or none of them."""
        return Split(
            pixels=self.pixels[:count],
            has_image=self.has_image[:count],
            texts=self.texts[:count],
            has_text=self.has_text[:count],
            labels=self.labels[:count],
            labelled=self.labelled[:count],
            patients=self.patients[:count],
        )

    def counts(self) -> SplitCounts:
        """Return how many images, texts, pairs and patients there are."""
        return SplitCounts(
            images=int(self.has_image.sum()),
            texts=int(self.has_text.sum()),
            pairs=int((self.has_image & self.has_text).sum()),
            patients=len(np.unique(self.patients)),
        )


@dataclass(frozen=True)
class SiteData:
    """All records of a site.

    Attributes:
        name: The site's name.
        findings: Names of the label columns, sorted; empty if nothing is labelled.
        prompts: Prompts per finding; findings without prompts are not scored zero-shot.
        splits: ``train``, ``val`` and ``test``.
        origin: Where the records come from.
        pictures_sha256: Digest of the pictures' files in the table's order; empty if unknown.
        people: The id behind every patient's number, for the privacy ledger alone; empty for one
            that the table does not name, and no ids at all where they are unknown.
    """

    name: str
    findings: tuple[str, ...]
    prompts: Mapping[str, Prompts]
    splits: Mapping[SplitName, Split]
    origin: DatasetOrigin
    pictures_sha256: str = ""
    people: tuple[str, ...] = field(default=(), repr=False)

    @property
    def kind(self) -> Kind:
        """What the training records are: any pair makes a site paired."""
        counts = self.splits["train"].counts()
        if counts.pairs:
            return "paired"
        if counts.images and counts.texts:
            return "unpaired"
        return "image" if counts.images else "text"

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Return the towers that the training records can train."""
        towers: dict[Kind, tuple[Tower, ...]] = {
            "paired": ("image", "text"),
            "unpaired": ("image", "text"),
            "image": ("image",),
            "text": ("text",),
        }
        return towers[self.kind]

    def sha256(self) -> str:
        """Return the digest of all records: pictures, texts, labels, patients and splits."""
        digest = hashlib.sha256(repr((self.name, self.findings)).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(repr((name, split.texts)).encode())
            arrays = (split.has_image, split.has_text, split.labels, split.labelled)
            for array in (split.pixels, *arrays, split.patients):
                digest.update(repr((array.shape, array.dtype.str)).encode())
                digest.update(np.ascontiguousarray(array).data)  # not a copy of a memory map
        return digest.hexdigest()

    def examples(self, tower: Tower) -> int:
        """Return how many training records a tower has."""
        train = self.splits["train"]
        return int((train.has_image if tower == "image" else train.has_text).sum())
