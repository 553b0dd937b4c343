"""The public corpus: clean films of the seven public findings, in every style's usual words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.phantoms.grammar import write_report
from simulations.phantoms.render import BATCH, render
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.studies import (
    BASE_RATES,
    FINDINGS,
    PUBLIC_FINDINGS,
    SIDED,
    ZONED,
    Study,
    draw_studies,
)
from simulations.phantoms.texture import Array
from simulations.phantoms.words import STYLES

STYLE_MIX = {
    "std": 0.5,
    "univ": 0.1,
    "german": 0.08,
    "archive": 0.08,
    "icu": 0.08,
    "clinic": 0.08,
    "grades": 0.08,
}
PLAIN_SCANNER = Scanner()
WIDE_SCANNER = Scanner(gamma=(0.7, 1.4), contrast=(0.75, 1.1), noise=(0.01, 0.05), collimation=0.4)
WIDE_SHARE = 0.25
FACTS_PER_FINDING = 7  # present, two sides, three zones, severe


@dataclass(frozen=True)
class Corpus:
    """Pictures (n, 96, 96) uint8, their reports, and the studies they were made from."""

    pictures: Array
    texts: list[str]
    studies: list[Study]

    @property
    def labels(self) -> Array:
        """Presence of each finding, (n, 12), in the order of ``FINDINGS``."""
        return np.array([[name in s.findings for name in FINDINGS] for s in self.studies], bool)


def public_corpus(count: int, seed: int, *, styles: Sequence[str] | None = None) -> Corpus:
    """Draw a corpus; the same for the same seed.

    Args:
        count: Number of studies.
        seed: Seed of everything drawn.
        styles: Styles in equal shares; by default the public mix.
    """
    names = list(styles or STYLE_MIX)
    weights = None if styles else list(STYLE_MIX.values())
    pictures, texts, studies = [], [], []
    for start in range(0, count, BATCH):
        rng = np.random.default_rng([seed, start])
        batch = draw_studies(min(BATCH, count - start), BASE_RATES, rng, prefix=f"public-{start}")
        scanner = WIDE_SCANNER if rng.random() < WIDE_SHARE and not styles else PLAIN_SCANNER
        pictures.append(render(batch, scanner, rng))
        for study in batch:
            style = str(rng.choice(names, p=weights))
            texts.append(write_report(study.findings, style, rng).text)
        studies += batch
    return Corpus(np.concatenate(pictures), texts, studies)


def word_list(count: int = 1500, seed: int = 5) -> list[str]:
    """Texts in every style about every finding, for the tokenizer's vocabulary only.

    Vocabulary is public knowledge; the model itself never trains on the words of sites alone.
    Without them jargon falls apart into bytes: longer, slower and weaker.
    """
    rates = dict.fromkeys(FINDINGS, 0.2)
    texts: list[str] = []
    for number, style in enumerate(STYLES):
        rng = np.random.default_rng([seed, number])
        studies = draw_studies(count, rates, rng)
        reports = (write_report(s.findings, style, rng, convention_rate=0.5) for s in studies)
        texts.extend(report.text for report in reports)
    return texts


def facts(studies: Sequence[Study]) -> Array:
    """What is true of each study, (n, 7 findings x 7 facts), float32: targets of the fact heads."""
    table = np.zeros((len(studies), len(PUBLIC_FINDINGS), FACTS_PER_FINDING), np.float32)
    for row, study in enumerate(studies):
        for column, name in enumerate(PUBLIC_FINDINGS):
            if finding := study.findings.get(name):
                table[row, column, 0] = 1
                table[row, column, 1 + finding.side] = name in SIDED
                table[row, column, 3 + finding.zone] = name in ZONED
                table[row, column, 6] = finding.severity > 0.5
    return table.reshape(len(studies), -1)
