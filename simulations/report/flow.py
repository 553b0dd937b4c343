"""Figures 6 and 7 and Table 4: how many sites and patients went how far, and why not further."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.page.numbers import plural, short, thousands
from shared.results import Results
from simulations.report.disclosure import Counter, counter
from simulations.report.participation import reason_words
from simulations.report.readings import (
    admitted,
    asked,
    lost_in,
    ordered,
    score_in_use,
    test_patients,
    why_no_level,
)
from simulations.report.words import KINDS, METRICS

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Stage:
    """One box of a flow chart, with what did not go further.

    Attributes:
        n: What the box counts.
        words: What it is.
        out: (count, words) that leave here; ``n`` minus these is the next box's ``n``.
        of: Print "n of this".
        aside: A remark that takes nothing away.
    """

    n: int
    words: str
    out: tuple[tuple[int, str], ...] = ()
    of: int | None = None
    aside: str = ""


def site_flow(results: Results) -> list[Stage]:
    """Return the stages from the sites of the run to those that were scored."""
    sites, names = results.sites, ordered(results)
    never = [n for n in names if not admitted(sites[n])]
    took = [n for n in names if admitted(sites[n])]
    lost = [n for n in took if n in lost_in(results, results.rounds)]
    idle = [n for n in took if n not in lost and _idle_last(results, n)]
    last = [n for n in took if n not in lost and n not in idle]
    unscored = [n for n in names if score_in_use(results, sites[n]) is None]
    paired = [
        n for n in names if any(m in sites[n].metrics.get("shared", {}) for m in ("r5", "i2t_r5"))
    ]
    label = METRICS[results.main_metric].label
    stages = [
        Stage(len(names), "in this run", _outs([(n, _never(results, n)) for n in never])),
        Stage(
            len(took),
            "contributed in some round",
            _outs(
                [(n, "not in the last round") for n in lost]
                + [(n, "not asked in the last round") for n in idle]
            ),
        ),
        Stage(len(last), "in the last round"),
        Stage(
            len(names) - len(unscored), f"scored by {label}",
            aside=_named([(n, why_no_level(results, sites[n])) for n in unscored]), of=len(names),
        ),
    ]  # fmt: skip
    if not results.main_metric.endswith(("r1", "r5", "r10")):
        rest = [(n, sites[n].not_measured.get("r5", "no score")) for n in names if n not in paired]
        stages.append(Stage(len(paired), "scored by retrieval", aside=_named(rest), of=len(names)))
    return stages


def _never(results: Results, name: str) -> str:
    cells = results.sites[name].participation
    reasons = dict.fromkeys(reason_words(cell.reason) for cell in cells if cell.reason)
    return next(
        iter(reasons), "never asked" if not asked(results.sites[name]) else "no contribution"
    )


def _idle_last(results: Results, name: str) -> bool:
    cells = results.sites[name].participation
    return len(cells) < results.rounds or (
        results.rounds > 0 and cells[results.rounds - 1].state == "idle"
    )


def _outs(rows: Sequence[tuple[str, str]]) -> tuple[tuple[int, str], ...]:
    """Group sites by reason: (count, "reason: names")."""
    reasons = dict.fromkeys(reason for _, reason in rows)
    grouped = ((reason, [short(n) for n, why in rows if why == reason]) for reason in reasons)
    return tuple((len(names), f"{', '.join(names)}: {reason}") for reason, names in grouped)


def _named(rows: Sequence[tuple[str, str]]) -> str:
    return ". ".join(words for _, words in _outs(rows))


def patient_flow(results: Results) -> list[Stage]:
    """Return the stages from the three splits to the patients scored on this page."""
    sites, names = results.sites, ordered(results)

    def total(split: Split) -> int:
        return sum(s.splits[split].patients for s in sites.values() if split in s.splits)

    train, val, test = total("train"), total("val"), total("test")
    out, scored = [], 0
    for name in names:
        n, score = test_patients(sites[name]), score_in_use(results, sites[name])
        used = min(score.n, n) if score else 0
        scored += used
        if score is None and n:
            out.append((n, f"at {short(name)}: {why_no_level(results, sites[name])}"))
        elif n > used:
            out.append((n - used, f"at {short(name)}: not in this measure"))
    if not any(site.splits for site in sites.values()):
        untold = "How many there are to train and to choose models, the sites do not tell."
        return [Stage(scored, "scored on this page", tuple(out), aside=untold)]
    return [
        Stage(
            train + val + test,
            "in the three splits",
            ((train, "to train"), (val, "to choose models")),
            aside="Records that a data check left out before are not recorded in the results.",
        ),
        Stage(test, "kept for test", tuple(out)),
        Stage(scored, "scored on this page"),
    ]


@dataclass(frozen=True)
class Box:
    """A stage as it is printed."""

    n: str
    words: str
    out: tuple[str, ...]


def boxes(stages: Sequence[Stage], show: Counter | None = None) -> list[Box]:
    """Return stages as text; ``show`` prints counts of patients, site counts are exact."""

    def count(n: int) -> str:
        return show(n) if show else str(n)

    out = []
    for stage in stages:
        left = [f"{count(n)} {words}" if show else words for n, words in stage.out]
        left += [stage.aside] if stage.aside else []
        head = f"{count(stage.n)} of {stage.of}" if stage.of is not None else count(stage.n)
        out.append(Box(head, stage.words, tuple(left)))
    return out


@dataclass(frozen=True)
class Declared:
    """One site in Table 4."""

    site: str
    kind: str
    cells: tuple[str, ...]
    towers: str


def declared(results: Results) -> list[Declared]:
    """Return the rows of Table 4: images, texts, pairs to train, patients by split, towers."""
    show = counter(results)
    rows = []
    for name in ordered(results):
        site = results.sites[name]
        train = site.splits.get("train")
        records = (train.images, train.texts, train.pairs) if train else ()
        cells = [show(n) if n else "none" for n in records] or ["not recorded"] * 3
        cells += [
            show(site.splits[s].patients) if s in site.splits else "not recorded"
            for s in SPLITS
        ]  # fmt: skip
        towers = [t for t, use in site.in_use.items() if use != "not trained"]
        rows.append(Declared(name, KINDS[site.kind], tuple(cells), " and ".join(towers) or "none"))
    return rows


def contributed(results: Results) -> str:
    """Return ``155 of 158 contributions``."""
    sites = results.sites.values()
    used = thousands(sum(map(admitted, sites)))
    return f"{used} of {plural(sum(map(asked, sites)), 'contribution')}"
