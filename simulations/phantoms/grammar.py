"""Reports: what a reader of a given style says about a study, misses, negates or leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulations.phantoms.studies import CHRONIC, FINDINGS, Finding
from simulations.phantoms.words import STYLES, Style, Vocabulary

NORMAL_SHARE = 0.75  # of the reports without a positive statement, those that only say "normal"
NEGATIONS_LAST_SHARE = 0.7
OVERLOOKED_BELOW = 0.3
OVERLOOKED_FACTOR, SEEN_FACTOR = 1.6, 0.5


@dataclass(frozen=True)
class Statement:
    """One phrase of a report.

    Attributes:
        phrase: As written.
        finding: What it is about.
        present: Whether it asserts or denies the finding.
        local: Whether the site's own convention was used.
    """

    phrase: str
    finding: str
    present: bool
    local: bool


@dataclass(frozen=True)
class Report:
    """A text and what it asserts; a normal report asserts nothing."""

    text: str
    statements: tuple[Statement, ...]


def omission(style: Style, finding: str, severity: float, convention_rate: float) -> float:
    """Probability that a finding is left out of a report."""
    factor = OVERLOOKED_FACTOR if severity < OVERLOOKED_BELOW else SEEN_FACTOR
    missed = style.omission_rate * factor
    silent = style.chronic_silence * convention_rate if finding in CHRONIC else 0.0
    return missed + (1 - missed) * silent


def fill(template: str, finding: Finding, words: Vocabulary) -> str:
    """Put a finding's side, zone and grade into a template."""
    low, high = words.cuts
    grade = int(finding.severity > low) + int(finding.severity > high)
    return template.format(
        side=words.sides[finding.side],
        zone=words.zones[finding.zone],
        size=words.sizes[grade],
        degree=words.degrees[grade],
        adverb=words.adverbs[grade],
    )


def write_report(
    findings: Mapping[str, Finding],
    style_name: str,
    rng: np.random.Generator,
    *,
    convention_rate: float = 0.0,
) -> Report:
    """Dictate a report.

    Args:
        findings: What is to be seen.
        style_name: A key of ``STYLES``.
        rng: Source of all randomness.
        convention_rate: Probability that a statement follows the site's own convention rather
            than the usual one; also scales the habit of not mentioning chronic findings.
    """
    style = STYLES[style_name]
    positive = _positive_statements(findings, style, convention_rate, rng)
    order = rng.permutation(len(positive))
    positive = [positive[place] for place in order]
    if not positive and rng.random() < NORMAL_SHARE:
        return Report(_pick(style.normals, rng), ())
    negative = _negative_statements(findings, style, convention_rate, rng)
    last = rng.random() < NEGATIONS_LAST_SHARE
    statements = positive + negative if last else negative + positive
    if not statements:
        return Report(_pick(style.normals, rng), ())
    text = style.separator.join(statement.phrase for statement in statements)
    return Report(text, tuple(statements))


def _positive_statements(
    findings: Mapping[str, Finding], style: Style, convention_rate: float, rng: np.random.Generator
) -> list[Statement]:
    statements = []
    for name, finding in findings.items():
        if rng.random() < omission(style, name, finding.severity, convention_rate):
            continue
        local = bool(rng.random() < convention_rate)
        words = style.local if local else style.usual
        phrase = fill(_pick(words.say[name], rng), finding, words)
        statements.append(Statement(phrase, name, True, local))
    return statements


def _negative_statements(
    findings: Mapping[str, Finding], style: Style, convention_rate: float, rng: np.random.Generator
) -> list[Statement]:
    statements = []
    for name in style.usual.negations:
        if name in findings or rng.random() >= style.negation_rate:
            continue
        local = bool(rng.random() < convention_rate)
        words = style.local if local else style.usual
        statements.append(Statement(words.negations[name], name, False, local))
    return statements


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def prompts(
    style_name: str, *, convention_rate: float = 0.0, count: int = 8
) -> dict[str, dict[str, list[str]]]:
    """Zero-shot prompts in a style: finding -> positive and negative texts.

    A positive prompt states one finding and nothing else; sides, zones and grades take turns. A
    negative one says that the film is normal or, where the style has a phrase for it, denies the
    finding. A share ``convention_rate`` of the positives follows the site's own convention.
    """
    style = STYLES[style_name]
    result = {}
    for name in FINDINGS:
        positive = []
        for number in range(count):
            local = int((number + 1) * convention_rate) > int(number * convention_rate)
            words = style.local if local else style.usual
            templates = words.say[name]
            shape = np.full(6, 0.5)
            finding = Finding(number % 2, number % 3, (number + 0.5) / count, shape)
            template = templates[number // 2 % len(templates)]
            positive.append(fill(template, finding, words))
        normals = [style.normals[number % len(style.normals)] for number in range(count)]
        denial = style.usual.negations.get(name)
        half = count // 2
        negative = normals[:half] + ([denial] * half if denial else normals[half:])
        result[name] = {"positive": positive, "negative": negative}
    return result
