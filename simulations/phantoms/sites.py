"""A phantom site and its records: studies, reports and the split by patient."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from simulations.phantoms.grammar import Report, write_report
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.studies import BASE_RATES, FINDINGS, Study, draw_studies
from simulations.phantoms.words import STYLES

Kind = Literal["paired", "image", "text", "unpaired"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SMALLEST_VALIDATION = 8
SURPLUS = 12  # studies beyond the need, so that whole patients can fill nearly every split


@dataclass(frozen=True)
class PhantomSite:
    """A synthetic institution.

    Attributes:
        name: Its name; patients' names begin with it.
        style: Register of its reports, a key of ``STYLES``.
        size: Studies for training and validation together.
        kind: What a training record holds.
        scanner: How its films are exposed.
        rates: Prevalence of each finding.
        test_size: Studies in the test split.
        convention_rate: Probability that a statement follows the site's own convention.
        description: What the institution is, in a word or two.
    """

    name: str
    style: str
    size: int
    kind: Kind = "paired"
    scanner: Scanner = field(default_factory=Scanner)
    rates: Mapping[str, float] = field(default_factory=lambda: dict(BASE_RATES))
    test_size: int = 160
    convention_rate: float = 0.0
    description: str = ""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"{self.name}: style {self.style!r}, expected one of {list(STYLES)}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.name}: kind {self.kind!r}, expected one of {get_args(Kind)}")
        if unknown := sorted(set(self.rates) - set(FINDINGS)):
            raise ValueError(f"{self.name}: rates of unknown findings {unknown}")
        if not 0 <= self.convention_rate <= 1:
            raise ValueError(f"{self.name}: convention_rate must lie between 0 and 1")
        if self.size < 2 * SMALLEST_VALIDATION:
            raise ValueError(f"{self.name}: size {self.size}, expected {2 * SMALLEST_VALIDATION}+")

    @property
    def validation_size(self) -> int:
        """Studies in the validation split: a fifth, but not fewer than 8."""
        return max(SMALLEST_VALIDATION, self.size // 5)


@dataclass(frozen=True)
class Record:
    """A study, its report, and where it belongs."""

    study: Study
    report: Report
    split: Split


def seed_for(seed: int, purpose: str) -> list[int]:
    """Entropy of one purpose of a site: what is drawn for one never shifts another."""
    return [seed, *purpose.encode()]


def draw_records(site: PhantomSite, seed: int) -> list[Record]:
    """Draw a site's studies and reports and split them by patient.

    The test split holds exactly ``test_size`` studies, training and validation together ``size``;
    the order is that of the patients' names.
    """
    needed = site.size + site.test_size
    rng = np.random.default_rng(seed_for(seed, "studies"))
    studies = draw_studies(needed + SURPLUS, site.rates, rng, prefix=site.name)
    places = _places(site)
    splits = _split_patients(studies, places, np.random.default_rng(seed_for(seed, "split")))
    rng = np.random.default_rng(seed_for(seed, "reports"))
    records = []
    for study in studies:
        report = write_report(study.findings, site.style, rng, convention_rate=site.convention_rate)
        split = splits.get(study.patient)
        if split and places[split]:
            records.append(Record(study, report, split))
            places[split] -= 1
    return records


def _places(site: PhantomSite) -> dict[Split, int]:
    """Size of each split, in the order in which they are filled."""
    training = site.size - site.validation_size
    return {"test": site.test_size, "val": site.validation_size, "train": training}


def _split_patients(
    studies: Sequence[Study], places: Mapping[Split, int], rng: np.random.Generator
) -> dict[str, Split]:
    """Fill the splits with whole patients in random order.

    Where no patient fits what is left of a split, the next one joins it and loses a later study.
    """
    visits = Counter(study.patient for study in studies)
    names = list(visits)
    waiting = [names[place] for place in rng.permutation(len(names))]
    splits: dict[str, Split] = {}
    for split, size in places.items():
        left = size
        while left > 0:
            patient = next((name for name in waiting if visits[name] <= left), waiting[0])
            waiting.remove(patient)
            splits[patient] = split
            left -= visits[patient]
    return splits
