"""Describe a site's records in numbers, for the person who owns them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from client.data.check import checked, count
from client.data.inspection import Inspection, inspect_site
from client.data.pairs import pairs_digest
from client.data.records import SplitName
from client.data.sources import Modality, SiteSource
from client.data.splits import SHARES
from shared.errors import DataError
from shared.results import Kind, SplitCounts

QUANTILES: Final = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Which quantiles describe lengths and sizes."""
NOISY_COLUMN: Final = "noisy_pair"
"""Column of simulated sites that says ``yes`` where the text is another patient's."""


@dataclass(frozen=True)
class FindingCounts:
    """How many records of each split show a finding."""

    finding: str
    positives: Mapping[SplitName, int]
    has_prompts: bool


@dataclass(frozen=True)
class TextCounts:
    """How long the texts are, and how much they repeat.

    Attributes:
        texts: How many there are.
        distinct: How many different ones.
        identical_share: Share of the texts that some other record also has, 0..1.
        characters: Length in characters at ``QUANTILES``.
        words: Length in words at ``QUANTILES``.
    """

    texts: int
    distinct: int
    identical_share: float
    characters: tuple[int, ...]
    words: tuple[int, ...]


@dataclass(frozen=True)
class ImageCounts:
    """What the images are.

    Attributes:
        images: How many there are.
        repeated: How many show the same picture as an earlier row.
        formats: Files by format, such as ``{"PNG": 12}``.
        modes: Files by the mode they are stored in, such as ``{"I;16": 12}``.
        widths: Width in pixels at ``QUANTILES``.
        heights: Height in pixels at ``QUANTILES``.
    """

    images: int
    repeated: int
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    widths: tuple[int, ...]
    heights: tuple[int, ...]


@dataclass(frozen=True)
class SiteDescription:
    """A site's records in numbers; nothing in it is a record's own text, file or patient.

    Attributes:
        name: The site's name.
        origin: ``phantom``, ``public`` or ``private``.
        licence: As ``dataset.json`` states it.
        kind: What the training records are.
        modality: Which modality the run uses.
        columns: The table's column for each of our names that it has.
        split_rule: Where the split comes from, as a sentence.
        splits: Images, texts, pairs and patients per split.
        labelled: Labelled records per split, those with nothing present included.
        noisy_pairs: Per split, the pairs that column ``noisy_pair`` says to have another's text.
        findings: Records per finding and split.
        texts: The texts in numbers; ``None`` if there are none.
        images: The images in numbers; ``None`` if there are none.
        patients: Different patients over all splits.
        without_patient: Rows that count as a patient of their own.
        most_of_one_patient: Rows of the patient with the most.
        pairs_sha256: Digest of the pairs, by which a job names its public set (``proxy.sha256``).
    """

    name: str
    origin: str
    licence: str
    kind: Kind | None
    modality: Modality
    columns: Mapping[str, str]
    split_rule: str
    splits: Mapping[SplitName, SplitCounts]
    labelled: Mapping[SplitName, int]
    noisy_pairs: Mapping[SplitName, int]
    findings: tuple[FindingCounts, ...]
    texts: TextCounts | None
    images: ImageCounts | None
    patients: int
    without_patient: int
    most_of_one_patient: int
    pairs_sha256: str


def describe_site(source: SiteSource) -> SiteDescription:
    """Describe a site's records.

    Raises:
        DataError: If a rule is broken; what cannot be used is not described.
    """
    site = inspect_site(source)
    errors = checked(site).errors
    if errors:
        raise DataError(f"site {source.name!r}: {len(errors)} problems in its data", errors)
    return described(site)


def described(site: Inspection) -> SiteDescription:
    """Describe what was read of a site."""
    people = Counter(entry.person for entry in site.entries)
    return SiteDescription(
        name=site.source.name,
        origin=site.origin.origin,
        licence=site.origin.licence,
        kind=checked(site).kind,
        modality=site.source.modality,
        columns=dict(site.columns),
        split_rule=_split_rule(site),
        splits={split: count(site, split) for split in SHARES},
        labelled={
            split: sum(entry.findings is not None for entry in site.in_split(split))
            for split in SHARES
        },
        noisy_pairs=_noisy_pairs(site),
        findings=tuple(_finding(site, name) for name in site.findings),
        texts=_texts([entry.text.strip() for entry in site.entries if entry.text.strip()]),
        images=_images(site),
        patients=len(people),
        without_patient=sum(not entry.patient for entry in site.entries),
        most_of_one_patient=max(people.values(), default=0),
        pairs_sha256=pairs_digest(site),
    )


def _split_rule(site: Inspection) -> str:
    if "split" in site.columns:
        return f"given in column {site.columns['split']!r}"
    shares = "/".join(str(round(100 * share)) for share in SHARES.values())
    return f"derived: by patient, {shares} by a hash of the patient id"


def _noisy_pairs(site: Inspection) -> dict[SplitName, int]:
    noisy = {row.number for row in site.table.rows if row.cells.get(NOISY_COLUMN) == "yes"}
    return {
        split: sum(
            entry.row in noisy and entry.row in site.pictures and bool(entry.text.strip())
            for entry in site.in_split(split)
        )
        for split in SHARES
    }


def _finding(site: Inspection, name: str) -> FindingCounts:
    positives = {
        split: sum(name in (entry.findings or ()) for entry in site.in_split(split))
        for split in SHARES
    }
    return FindingCounts(name, positives, name in site.prompts)


def _texts(texts: Sequence[str]) -> TextCounts | None:
    if not texts:
        return None
    copies = Counter(texts)
    return TextCounts(
        texts=len(texts),
        distinct=len(copies),
        identical_share=sum(n for n in copies.values() if n > 1) / len(texts),
        characters=_quantiles([len(text) for text in texts]),
        words=_quantiles([len(text.split()) for text in texts]),
    )


def _images(site: Inspection) -> ImageCounts | None:
    pictures = list(site.pictures.values())
    if not pictures:
        return None
    return ImageCounts(
        images=len(pictures),
        repeated=len(pictures) - len({picture.digest for picture in pictures}),
        formats=dict(Counter(picture.format for picture in pictures).most_common()),
        modes=dict(Counter(picture.mode for picture in pictures).most_common()),
        widths=_quantiles([picture.width for picture in pictures]),
        heights=_quantiles([picture.height for picture in pictures]),
    )


def _quantiles(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(round(float(value)) for value in np.quantile(values, QUANTILES))
