"""Noisy pairs: some texts stand beside the image of another patient.

Noisy correspondence as in Huang et al. (2021, Learning with Noisy Correspondence for Cross-modal
Matching, NeurIPS): a share of the pairs exchange their texts. Labels stay with the image. Texts
never leave their site or split, and test pairs stay clean.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from client.data.records import SplitName
from simulations.partition.modality import pairs_of
from simulations.partition.pool import Record

_SPLITS: tuple[SplitName, ...] = ("train", "val")


def with_noise(
    records: Sequence[Record], rate: float, rng: np.random.Generator
) -> tuple[list[Record], set[int]]:
    """Exchange the texts of a share of a site's pairs, in training and in validation.

    Args:
        records: A site's records.
        rate: Share of the pairs of each split, 0..1, rounded to whole pairs. Fewer are changed
            where one patient has more than half of them, none where one pair is left alone.
        rng: Draws which ones.

    Returns:
        The records, and the places of those that have a text of another patient.
    """
    changed, noisy = list(records), set[int]()
    for split in _SPLITS:
        pairs = [place for place in pairs_of(records) if records[place].split == split]
        chosen = _chosen(records, [pairs[n] for n in rng.permutation(len(pairs))], rate)
        # Patients side by side, then every text moves on by the longest run: beyond its patient.
        run = max(Counter(records[place].person for place in chosen).values(), default=0)
        for number, place in enumerate(chosen):
            giver = chosen[(number + run) % len(chosen)]
            changed[place] = replace(records[place], text=records[giver].text)
            noisy.add(place)
    return changed, noisy


def _chosen(records: Sequence[Record], order: Sequence[int], rate: float) -> list[int]:
    """The first pairs in a random order, no patient with more than half, grouped by patient."""
    wanted = round(rate * len(order))
    while wanted >= 2:
        taken: list[int] = []
        held: Counter[str] = Counter()
        for place in order:
            person = records[place].person
            if len(taken) < wanted and held[person] < wanted // 2:
                taken.append(place)
                held[person] += 1
        if len(taken) == wanted:
            first = {records[place].person: n for n, place in reversed(list(enumerate(taken)))}
            return sorted(taken, key=lambda place: first[records[place].person])
        wanted = len(taken) if len(taken) < wanted - 1 else wanted - 1
    return []
