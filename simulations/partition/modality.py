"""Modalities: which sites have pairs, images, texts or both unpaired, and what is missing.

Test rows stay whole whatever a site's kind, as the phantoms' do: a simulation can so audit
retrieval where a real site of that kind could not. Settings of this sort are compared in CreamFL
(Yu et al., 2023, https://arxiv.org/abs/2302.08888: sites of images, of texts and of both) and
FedMultimodal (Feng et al., 2023, https://arxiv.org/abs/2306.09486: modalities missing at a rate).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shared.results import Kind
from simulations.partition.divide import largest_remainder
from simulations.partition.pool import Record


def kinds_of(
    names: Sequence[str], shares: Mapping[Kind, float], rng: np.random.Generator
) -> dict[str, Kind]:
    """Say which site is of which kind.

    Args:
        names: The sites.
        shares: Share of the sites of each kind, which sum to 1.
        rng: Draws which ones.

    Returns:
        The kind of every site; in whole sites, each kind within 1 of its share.
    """
    counts = largest_remainder(len(names), np.array([*shares.values()]))
    kinds = [kind for kind, count in zip(shares, counts, strict=True) for _ in range(count)]
    order = rng.permutation(len(names))
    return {names[place]: kind for place, kind in zip(order, kinds, strict=True)}


def as_kind(records: Sequence[Record], kind: Kind) -> list[Record]:
    """Return a site's records as a site of that kind has them; test rows stay whole.

    Records that have nothing of what the kind has are left out. ``unpaired`` splits a pair into a
    row with the image and one with the text.
    """
    kept = []
    for record in records:
        if record.split == "test" or kind == "paired":
            kept.append(record)
            continue
        image, text = replace(record, text=""), replace(record, file_name="")
        if kind in ("image", "unpaired") and record.file_name:
            kept.append(image)
        if kind in ("text", "unpaired") and record.text.strip():
            kept.append(text)
    return kept


def with_missing(
    records: Sequence[Record], image: float, text: float, rng: np.random.Generator
) -> list[Record]:
    """Take the image or the text from a share of the training and validation pairs.

    Args:
        records: A site's records.
        image: Share of the pairs that lose their image.
        text: Share of the pairs, others, that lose their text.
        rng: Draws which ones.
    """
    pairs = pairs_of(records)
    order = rng.permutation(pairs)
    without_image = round(image * len(pairs))
    without_text = round(text * len(pairs))  # or all that are left
    changed = list(records)
    for place in order[:without_image]:
        changed[place] = replace(changed[place], file_name="")
    for place in order[without_image : without_image + without_text]:
        changed[place] = replace(changed[place], text="")
    return changed


def pairs_of(records: Sequence[Record]) -> list[int]:
    """Return the places of the training and validation records with image and text."""
    return [
        place
        for place, record in enumerate(records)
        if record.split != "test" and record.file_name and record.text.strip()
    ]
