"""Distillation at the server, round by round: what it gained on its public set, what was kept."""

from dataclasses import dataclass

from shared.page.numbers import plural, thousands
from shared.results import Results

MOST_ROWS = 40


@dataclass(frozen=True)
class ProxyTable:
    """What the report says of it.

    Attributes:
        words: How often it was done, and kept.
        rows: Round, loss before and after in nats, and what became of it.
        thinned: Whether rounds are left out.
    """

    words: str
    rows: list[tuple[str, str, str, str]]
    thinned: bool


def proxy(results: Results) -> ProxyTable | None:
    """Return what the report says of distillation at the server; ``None`` if there was none."""
    steps = [(cost.round, cost.proxy) for cost in results.round_costs if cost.proxy is not None]
    if not steps:
        return None
    kept = sum(step.accepted for _, step in steps)
    every = -(-len(steps) // MOST_ROWS)
    rows = [
        (
            thousands(number),
            f"{step.before:.3f}",
            "not finite" if step.after is None else f"{step.after:.3f}",
            "kept" if step.accepted else "thrown away",
        )
        for place, (number, step) in enumerate(steps)
        if place % every == 0 or place == len(steps) - 1
    ]
    words = (
        f"After {plural(len(steps), 'round')} the server distilled the sites\u2019 adapters into "
        f"the shared one on its public set; it kept the result {plural(kept, 'time')}, where the "
        "loss of held-out pairs of that set was lower for it"
    )
    return ProxyTable(words, rows, every > 1)
