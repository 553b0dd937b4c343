"""Choosing a learning rate by records that are not compared.

The main metric decides, since that is what methods are compared in: the loss of held-out records
kept falling at rates at which the metric had long begun to (centralised AUROC .680 at the rate of
least loss, .70 at half of it). The loss decides where the metric cannot be measured, and says
whether training ended with numbers at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """What one rate gave on the tuning seed.

    Attributes:
        rate: The learning rate.
        base: Mean over sites of the base's validation loss, in nats; ``None`` if there is none.
        loss: The same after training; ``None`` if it was not finite or there is none.
        base_level: Mean over sites of the base's main metric on the records of the choice.
        level: The same of the model in use; ``None`` if it could not be measured.
    """

    rate: float
    base: float | None
    loss: float | None
    base_level: float | None = None
    level: float | None = None

    @property
    def finite(self) -> bool:
        """Whether training ended with a finite loss, or at least with a level."""
        return self.level is not None or (self.loss is not None and math.isfinite(self.loss))


@dataclass(frozen=True)
class Choice:
    """The rate of one row.

    Attributes:
        rate: Chosen; ``None`` if every rate diverged.
        tried: All rates.
        note: What a reader must know about the choice; empty if nothing.
    """

    rate: float | None
    tried: tuple[Tried, ...]
    note: str = ""


def choose(tried: Sequence[Tried], *, lower_is_better: bool = False) -> Choice:
    """Return the rate of best main metric, or of least loss; of equals the smallest.

    Args:
        tried: What every rate gave.
        lower_is_better: Whether the main metric is one of these.
    """
    finite = [each for each in tried if each.finite]
    rates = ", ".join(f"{each.rate:g}" for each in tried)
    if not finite:
        return Choice(None, tuple(tried), f"diverged at every rate ({rates})")
    measured = all(each.level is not None for each in finite)
    sign = 1 if lower_is_better or not measured else -1

    def cost(value: float | None) -> float:
        return math.inf if value is None else sign * value

    def own(each: Tried) -> float:
        return cost(each.level if measured else each.loss)

    def untouched(each: Tried) -> float:
        return cost(each.base_level if measured else each.base)

    best = min(finite, key=lambda each: (own(each), each.rate))
    what = "the main metric was worse than" if measured else "loss above"
    note = ""
    if all(own(each) > untouched(each) for each in finite):
        note = f"{what} the base's at every rate ({rates})"
    elif len(tried) > 2 and best.rate in (tried[0].rate, tried[-1].rate):
        note = "the chosen rate is at the end of the grid"
    return Choice(best.rate, tuple(tried), note)
