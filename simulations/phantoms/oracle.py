"""An exact reader: how well retrieval could go if pictures hid nothing.

The reader sees every latent of a study and knows the site's grammar, convention rate included, but
not its dice. It scores a text by the probability that this study would have been reported so.
Texts that two studies share, and findings that reports omit, keep even this reader below 100 %.
"""

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from itertools import product

import numpy as np

from simulations.phantoms.grammar import NORMAL_SHARE, fill, omission
from simulations.phantoms.retrieval import recall
from simulations.phantoms.sites import PhantomSite, draw_records
from simulations.phantoms.studies import Finding
from simulations.phantoms.texture import Array
from simulations.phantoms.words import STYLES, Style

IMPOSSIBLE = 1e-12  # a floor, so that an impossible statement does not hide how good the rest is
Meaning = tuple[str, bool]
Reading = tuple[dict[str, str], dict[str, str]]
"""The phrase about every finding that a text asserts, and about every one that it denies."""

_SHAPE = np.zeros(6)  # no report says anything about it


def oracle_scores(site: PhantomSite, seed: int) -> dict[str, float]:
    """Retrieval numbers of the exact reader on the test split that ``write_site`` writes."""
    similarity, texts = oracle_similarity(site, seed)
    return recall(similarity, texts)


def oracle_similarity(site: PhantomSite, seed: int) -> tuple[Array, list[str]]:
    """Log-probabilities (studies of the test split, sorted distinct texts), and each row's text."""
    test = [record for record in draw_records(site, seed) if record.split == "test"]
    texts = [record.report.text for record in test]
    reader = Reader(site.style, site.convention_rate)
    distinct = sorted(set(texts))
    # Rounded, so that texts that are equally likely are ties and not an accident of addition.
    table = [
        [round(reader.log_likelihood(text, record.study.findings), 6) for text in distinct]
        for record in test
    ]
    return np.array(table), texts


class Reader:
    """The likelihood of reports in one style at one convention rate."""

    def __init__(self, style_name: str, convention_rate: float) -> None:
        self._style: Style = STYLES[style_name]
        self._rate = convention_rate
        self._lexicon = _lexicon(self._style)
        self._read = lru_cache(maxsize=None)(self._parse)
        self._words = lru_cache(maxsize=None)(self._word)

    def log_likelihood(self, text: str, findings: Mapping[str, Finding]) -> float:
        """Log-probability of ``text``, up to a constant of the text alone."""
        style = self._style
        if text in style.normals:
            return math.log(max(self._normal(findings), IMPOSSIBLE) / len(style.normals))
        readings = (self._reading(reading, findings) for reading in self._read(text))
        return math.log(max(sum(readings), IMPOSSIBLE**6))

    def meanings(self, phrase: str) -> list[Meaning]:
        """What a single phrase may assert (True) or deny (False); empty if it is unknown."""
        return self._lexicon.get(phrase, [])

    def _parse(self, text: str) -> list[Reading]:
        """Every way to understand a text: a meaning for each phrase, no finding twice."""
        phrases = self._split(text)
        found = []
        for meanings in product(*(self._lexicon[phrase] for phrase in phrases)):
            if len({finding for finding, _ in meanings}) == len(meanings):
                said: Reading = ({}, {})
                for phrase, (finding, present) in zip(phrases, meanings, strict=True):
                    said[0 if present else 1][finding] = phrase
                found.append(said)
        return found

    def _split(self, text: str) -> list[str]:
        """Split at the separator, except inside phrases that contain it themselves."""
        phrases: list[str] = []
        pending = ""
        for piece in text.split(self._style.separator):
            pending = f"{pending}{self._style.separator}{piece}" if pending else piece
            if pending in self._lexicon:
                phrases.append(pending)
                pending = ""
        return phrases

    def _reading(self, reading: Reading, findings: Mapping[str, Finding]) -> float:
        positive, negative = reading
        probability = 1.0 if positive else 1 - NORMAL_SHARE
        for name in positive:
            if name not in findings:
                probability *= IMPOSSIBLE
        for name, finding in findings.items():
            left_out = omission(self._style, name, finding.severity, self._rate)
            if name in positive:
                said = self._words(name, finding.side, finding.zone, finding.severity)
                probability *= max((1 - left_out) * said.get(positive[name], 0.0), IMPOSSIBLE)
            else:
                probability *= left_out
        for name in self._style.usual.negations:
            if name in negative:
                denied = self._denial(negative[name], name)
                allowed = name not in findings
                probability *= self._style.negation_rate * denied if allowed else IMPOSSIBLE
            elif name not in findings:
                probability *= 1 - self._style.negation_rate
        return probability

    def _normal(self, findings: Mapping[str, Finding]) -> float:
        """Probability that nothing at all is said of the findings, nor of their absence."""
        probability = 1.0
        for name, finding in findings.items():
            probability *= omission(self._style, name, finding.severity, self._rate)
        absent = sum(name not in findings for name in self._style.usual.negations)
        silent = (1 - self._style.negation_rate) ** absent
        return probability * (NORMAL_SHARE + (1 - NORMAL_SHARE) * silent)

    def _word(self, name: str, side: int, zone: int, severity: float) -> dict[str, float]:
        """Every phrase that may assert a finding, and how probable it is if there is one."""
        finding = Finding(side, zone, severity, _SHAPE)
        said: dict[str, float] = {}
        for weight, words in ((1 - self._rate, self._style.usual), (self._rate, self._style.local)):
            templates = words.say[name]
            counts = Counter(fill(template, finding, words) for template in templates)
            for phrase, count in counts.items():
                said[phrase] = said.get(phrase, 0.0) + weight * count / len(templates)
        return said

    def _denial(self, phrase: str, name: str) -> float:
        usual = self._style.usual.negations[name] == phrase
        local = self._style.local.negations[name] == phrase
        return (1 - self._rate) * usual + self._rate * local


def _lexicon(style: Style) -> dict[str, list[Meaning]]:
    """Every phrase of a style and what it may mean."""
    lexicon: dict[str, list[Meaning]] = {}
    for words in (style.usual, style.local):
        for name, templates in words.say.items():
            for template, side, zone, grade in product(templates, (0, 1), (0, 1, 2), (0, 1, 2)):
                severity = (0.0, sum(words.cuts) / 2, 1.0)[grade]
                phrase = fill(template, Finding(side, zone, severity, _SHAPE), words)
                meanings = lexicon.setdefault(phrase, [])
                if (name, True) not in meanings:
                    meanings.append((name, True))
        for name, phrase in words.negations.items():
            meanings = lexicon.setdefault(phrase, [])
            if (name, False) not in meanings:
                meanings.append((name, False))
    return lexicon
