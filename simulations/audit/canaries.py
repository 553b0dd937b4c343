"""Phantom patients that the audit plants: half of them train, the others are held out.

A canary is a synthetic film with the report of another one. What generalises from other patients
helps neither half, so whoever tells the halves apart has read it from what was memorised.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.records import SiteData, Split, SplitName
from client.proxy import ProxySet
from shared.errors import InputError
from shared.model.encoder import DualEncoder
from shared.results import DatasetOrigin
from shared.seeding import derive_seed
from simulations.phantoms.grammar import write_report
from simulations.phantoms.render import render_all
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.studies import BASE_RATES, draw_studies

REFERENCES = 192
"""Pairs that belong to nobody and are trained on nowhere: what canaries are compared with."""

_STYLE = "std"
_FREQUENT = 2.0  # findings, so that few reports are alike


@dataclass(frozen=True)
class Pairs:
    """Pictures and reports, a patient each.

    Attributes:
        pixels: (n, height, width, 1) uint8.
        texts: n.
    """

    pixels: NDArray[np.uint8]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, rows: NDArray[np.intp]) -> "Pairs":
        """Return some of them."""
        return Pairs(self.pixels[rows], tuple(self.texts[row] for row in rows))

    def split(self, findings: int = 0) -> Split:
        """Return them as unlabelled records with both sides."""
        count = len(self)
        return Split(
            pixels=self.pixels,
            has_image=np.ones(count, bool),
            texts=self.texts,
            has_text=np.ones(count, bool),
            labels=np.zeros((count, findings), np.float32),
            labelled=np.zeros(count, bool),
            patients=np.arange(count, dtype=np.int64),
        )


def draw_pairs(count: int, seed: int, encoder: DualEncoder, *, apart: bool = False) -> Pairs:
    """Draw synthetic pairs, each of a patient of its own.

    Args:
        count: How many.
        seed: Of everything in them.
        encoder: Says what size pictures have.
        apart: Give every picture the report of the next one.
    """
    rng = np.random.default_rng(seed)
    rates = {name: min(0.5, _FREQUENT * rate) for name, rate in BASE_RATES.items()}
    studies = [draw_studies(1, rates, rng, prefix=f"canary-{number}")[0] for number in range(count)]
    films = render_all(studies, Scanner(), [seed, 1])
    pixels = np.stack([encoder.to_pixels(Image.fromarray(film)) for film in films])
    texts = [write_report(study.findings, _STYLE, rng).text for study in studies]
    if apart:
        texts = [*texts[1:], *texts[:1]]
    return Pairs(pixels[..., None] if pixels.ndim == 3 else pixels, tuple(texts))


def references(encoder: DualEncoder, seed: int, count: int = REFERENCES) -> ProxySet:
    """Return pairs that no site has, in the form of a public set."""
    pairs = draw_pairs(count, derive_seed(seed, "audit", "references"), encoder).split()
    none = pairs.first(0)
    splits: dict[SplitName, Split] = {"train": pairs, "val": none, "test": none}
    data = SiteData("references", (), {}, splits, DatasetOrigin(origin="phantom"))
    return ProxySet(data, "")


def plant(data: SiteData, canaries: Pairs) -> SiteData:
    """Return a site with canaries among its training records, a patient each.

    Raises:
        InputError: If the site has no pairs: canaries of pictures with reports would be the only
            ones.
    """
    train = data.splits["train"]
    if not (train.has_image & train.has_text).any():
        raise InputError(
            f"{data.name}: has no pictures with reports, and canaries are such pairs; name another "
            "site with --site"
        )
    first = len(data.people) if data.people else 1 + max(_last(s) for s in data.splits.values())
    people = tuple(f"canary-{number}" for number in range(len(canaries))) if data.people else ()
    added = canaries.split(len(data.findings))
    joined = Split(
        pixels=np.concatenate([train.pixels, _like(added.pixels, train.pixels.shape[3])]),
        has_image=np.concatenate([train.has_image, added.has_image]),
        texts=(*train.texts, *added.texts),
        has_text=np.concatenate([train.has_text, added.has_text]),
        labels=np.concatenate([train.labels, added.labels]),
        labelled=np.concatenate([train.labelled, added.labelled]),
        patients=np.concatenate([train.patients, added.patients + first]),
    )
    return replace(
        data,
        splits={**data.splits, "train": joined},
        people=(*data.people, *people),
        pictures_sha256="",
    )


def _last(split: Split) -> int:
    return int(split.patients.max()) if len(split) else -1


def _like(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    return np.repeat(pixels, channels, axis=3) if pixels.shape[3] < channels else pixels
