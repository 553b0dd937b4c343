"""Choosing a learning rate by validation records, never by a test split."""

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
    """

    rate: float
    base: float | None
    loss: float | None

    @property
    def finite(self) -> bool:
        """Whether training ended with a finite loss."""
        return self.loss is not None and math.isfinite(self.loss)

    @property
    def worse_than_base(self) -> bool:
        """Whether the base had the lower loss."""
        return self.finite and self.base is not None and float(self.loss or 0) > self.base


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


def choose(tried: Sequence[Tried]) -> Choice:
    """Return the rate of least validation loss; of equals the smallest."""
    finite = [each for each in tried if each.finite]
    rates = ", ".join(f"{each.rate:g}" for each in tried)
    if not finite:
        return Choice(None, tuple(tried), f"diverged at every rate ({rates})")
    best = min(finite, key=lambda each: (each.loss, each.rate))
    note = ""
    if all(each.worse_than_base for each in finite):
        note = f"validation loss above the base's at every rate ({rates})"
    elif len(tried) > 2 and best.rate in (tried[0].rate, tried[-1].rate):
        note = "the chosen rate is at the end of the grid"
    return Choice(best.rate, tuple(tried), note)
