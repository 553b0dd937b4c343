"""The table in Markdown: what every cell gains over the base, with intervals over seeds.

Numbers stand as they are, whichever way they turned out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from shared.metrics import METRICS
from shared.results import Metric
from simulations.study import interval
from simulations.utility.cells import MEASURES, Score
from simulations.utility.plan import (
    EPSILONS,
    STUDIES,
    TEST_STUDIES,
    Plan,
    Reference,
    Row,
)

PAGE: Final = "utility"
"""Names the place of the table in a page."""

Key = tuple[Row | Reference, float, int]
"""Row, epsilon and seed."""

_MECHANISMS: Final = {
    "separable": "separable, noise at each site",
    "distributed": "distributed noise, one sum a step",
    "grouped": "group-clipped contrastive (2C)",
}
_FACTORS: Final = {
    "altfold": "one factor a round (altfold)",
    "ffa": "one factor, the other fixed (ffa)",
    "fedavg": "two factors at once (fedavg)",
}
_COMPARED: Final = (
    (
        "separable, in-domain bank: fedavg minus altfold (two factors' noise against one's)",
        Row("separable", "fedavg"),
        Row("separable"),
    ),
    ("separable, in-domain bank: ffa minus altfold", Row("separable", "ffa"), Row("separable")),
    (
        "ffa: distributed minus separable, in-domain bank",
        Row("distributed", "ffa"),
        Row("separable", "ffa"),
    ),
    ("group-clipped minus separable, in-domain bank", Row("grouped"), Row("separable")),
    (
        "separable: out-of-domain bank minus in-domain bank",
        Row("separable", bank="out-of-domain"),
        Row("separable"),
    ),
)


def markdown(
    plan: Plan,
    scores: Mapping[Key, Score],
    rates: Mapping[tuple[Row | Reference, float], float],
    command: str,
) -> str:
    """Return the whole section.

    Args:
        plan: What was measured.
        scores: Of all compared cells.
        rates: That were chosen.
        command: That makes it.
    """
    lines = ["```console", f"$ {command}", "```", "", *_made_by(plan), ""]
    for metric in MEASURES:
        lines += [*_levels(plan, scores, metric), "", *_differences(plan, scores, metric), ""]
    return "\n".join([*lines, *_noise(plan, scores), "", _rates(rates)]).rstrip() + "\n"


def _made_by(plan: Plan) -> Iterator[str]:
    job = plan.job
    steps = job.rounds * int(job.train.steps or 0)
    yield (
        f"{len(job.data.sites)} synthetic sites with {STUDIES} studies each for training and "
        f"validation, about two to a patient; {TEST_STUDIES} for tests. Every training takes "
        f"{job.rounds} rounds of {job.train.steps} steps ({steps} in all) of rank {job.lora.rank} "
        f"adapters in the last layer of each tower; sampling rate {job.privacy.sampling_rate:g}, "
        f"clipping norm {job.privacy.clip_norm:g}, delta {job.privacy.delta:g}, groups of "
        f"{job.privacy.group_size} patients, {job.proxy.phantoms} public pairs. With distributed "
        f"noise they are {steps} rounds of one step, which Adam at the server takes. Local-only "
        "and centralised train without privacy for as many steps."
    )
    yield ""
    yield (
        f"Mean and 95 % interval (Student's t) over {len(plan.seeds)} seeds, each with records of "
        "its own, of the difference to the base on the same records. Every row chose its "
        f"learning rates from {', '.join(f'{rate:g}' for rate in plan.rates)} by "
        f"{METRICS[MEASURES[0]].label} on the records of another seed with the in-domain bank: one "
        "for \u03b5 = 1 and 2, one for 4 and 8, one for 16 and \u221e. At a hospital that choice "
        "would cost privacy too, unless it is made on "
        "public records. With epsilon \u221e gradients are clipped and there is no noise. "
        "**Bold**: the whole interval lies above the base; *italic*: below it."
    )


def _levels(plan: Plan, scores: Mapping[Key, Score], metric: Metric) -> Iterator[str]:
    base = _by_seed(plan, scores, "base", math.inf, metric)
    yield f"**{METRICS[metric].label}**, mean of sites; the base has {_plain(base)}."
    yield ""
    yield from _head(["mechanism", "bank"])
    for name in ("local", "centralised"):
        found = _by_seed(plan, scores, name, math.inf, metric)
        cells = ["\u2014"] * (len(EPSILONS) - 1) + [_shown(_minus(found, base))]
        words = "local-only" if name == "local" else name
        yield _line([f"{words}, without privacy", "none", *cells])
    for row in _rows(scores):
        cells = [
            _shown(_minus(_by_seed(plan, scores, row, epsilon, metric), base))
            for epsilon in EPSILONS
        ]
        bank = "no negatives from it" if row.mechanism == "grouped" else row.bank
        factors = "" if row.rule == "altfold" else f"; {_FACTORS[row.rule]}"
        yield _line([_MECHANISMS[row.mechanism] + factors, bank, *cells])


def _differences(plan: Plan, scores: Mapping[Key, Score], metric: Metric) -> Iterator[str]:
    yield f"Paired differences in {METRICS[metric].label}:"
    yield ""
    yield from _head(["what"])
    for words, one, other in _COMPARED:
        cells = [
            _shown(
                _minus(
                    _by_seed(plan, scores, one, epsilon, metric),
                    _by_seed(plan, scores, other, epsilon, metric),
                )
            )
            for epsilon in EPSILONS
        ]
        yield _line([words, *cells])


def _noise(plan: Plan, scores: Mapping[Key, Score]) -> Iterator[str]:
    found = [scores.get((Row("separable"), epsilon, plan.seeds[0])) for epsilon in EPSILONS]
    yield "Noise multipliers, over what one patient can change:"
    yield ""
    yield from _head([""])
    yield _line(["z", *(f"{s.noise:.3g}" if s and s.noise else "0" for s in found)])


def _rates(rates: Mapping[tuple[Row | Reference, float], float]) -> str:
    words = []
    for (row, epsilon), rate in rates.items():
        name = row if isinstance(row, str) else f"{row.mechanism} {row.rule}"
        at = "" if isinstance(row, str) else f" at \u03b5 = {_epsilon(epsilon)}"
        words.append(f"{name}{at} {rate:g}")
    return f"Learning rates that were chosen: {'; '.join(words)}."


def _rows(scores: Mapping[Key, Score]) -> list[Row]:
    return list(dict.fromkeys(row for row, _, _ in scores if isinstance(row, Row)))


def _by_seed(
    plan: Plan, scores: Mapping[Key, Score], row: Row | Reference, epsilon: float, metric: Metric
) -> list[float | None]:
    found = [scores.get((row, epsilon, seed)) for seed in plan.seeds]
    return [score.mean(metric) if score else None for score in found]


def _minus(one: Sequence[float | None], other: Sequence[float | None]) -> list[float]:
    pairs = zip(one, other, strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def _shown(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else "\u2014"
    mean, low, high = interval(values)
    text = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 else f"*{text}*" if high < 0 else text


def _plain(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "not been measured"


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _line([*names, *(f"\u03b5 = {_epsilon(epsilon)}" for epsilon in EPSILONS)])
    yield "|---" * (len(names) + len(EPSILONS)) + "|"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _epsilon(epsilon: float) -> str:
    return "\u221e" if math.isinf(epsilon) else f"{epsilon:g}"
