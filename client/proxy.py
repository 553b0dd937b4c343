"""The public paired set as a site holds it: read like records, known by its content.

Sites that exchange features of it must mean the same items in the same order, whatever size and
form their encoders want pictures in. So the set is told by the digest of its files and texts.
"""

from dataclasses import dataclass

import numpy as np

from client.data.load import load_inspected
from client.data.pairs import pairs_digest
from client.data.records import SiteData, Split, SplitName
from client.data.sources import SiteSource
from client.settings import SiteSettings
from shared.errors import DataError, RefusedError
from shared.model.encoder import DualEncoder

LEAST_ITEMS = 8
"""Fewer public pairs tell sites apart by nothing."""
MOST_ITEMS = 16_384
"""More would make a message longer than most adapters, and a row of contrasts longer than that."""


@dataclass(frozen=True)
class ProxySet:
    """The public set, prepared for one encoder.

    Attributes:
        data: All its pairs as a training split; other splits are empty.
        sha256: Digest of the pairs' files and texts, the same for every encoder.
    """

    data: SiteData
    sha256: str

    def __len__(self) -> int:
        return len(self.data.splits["train"])


def load_proxy(settings: SiteSettings, encoder: DualEncoder) -> ProxySet:
    """Load the set that a site's settings name.

    Raises:
        RefusedError: ``no-proxy`` if they name none.
        DataError: If it breaks a rule, or has too few or too many pairs.
    """
    if settings.proxy is None:
        raise RefusedError("no-proxy", "the site's settings name no public set")
    return read_proxy_set(settings.proxy, encoder)


def read_proxy_set(source: SiteSource, encoder: DualEncoder) -> ProxySet:
    """Load a public set; records of all its splits that have image and text, in a fixed order.

    Raises:
        DataError: If it breaks a rule, or has too few or too many pairs.
    """
    data, inspected = load_inspected(source, encoder.to_pixels)
    pairs = [split for _, split in sorted(data.splits.items())]
    together = _joined([_pairs_of(split) for split in pairs])
    if not LEAST_ITEMS <= len(together) <= MOST_ITEMS:
        raise DataError(
            f"public set {source.table}: {len(together)} records have both an image and a text, "
            f"expected {LEAST_ITEMS} to {MOST_ITEMS} such pairs, as in docs/data.md"
        )
    splits: dict[SplitName, Split] = {"val": together.first(0), "test": together.first(0)}
    splits["train"] = together
    public = SiteData(data.name, data.findings, {}, splits, data.origin)
    return ProxySet(public, pairs_digest(inspected))


def _pairs_of(split: Split) -> Split:
    rows = np.flatnonzero(split.has_image & split.has_text)
    return Split(
        pixels=np.asarray(split.pixels[rows]),
        has_image=split.has_image[rows],
        texts=tuple(split.texts[row] for row in rows),
        has_text=split.has_text[rows],
        labels=split.labels[rows],
        labelled=split.labelled[rows],
        patients=split.patients[rows],
    )


def _joined(parts: list[Split]) -> Split:
    return Split(
        pixels=np.concatenate([part.pixels for part in parts]),
        has_image=np.concatenate([part.has_image for part in parts]),
        texts=tuple(text for part in parts for text in part.texts),
        has_text=np.concatenate([part.has_text for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        labelled=np.concatenate([part.labelled for part in parts]),
        patients=np.concatenate([part.patients for part in parts]),
    )
