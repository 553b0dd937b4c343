"""What is left to chance in a batch of films.

All of it is drawn before anything is painted, for the whole batch and in a fixed order: films are
then painted a few at a time, as many as fit the processor's cache, and not a bit of them depends
on how many those are.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from simulations.phantoms.texture import Array


def column(rng: np.random.Generator, low: float, high: float, count: int) -> Array:
    """Uniform numbers of shape (count, 1, 1), one for each film."""
    return rng.uniform(low, high, count).astype(np.float32)[:, None, None]


@dataclass(frozen=True)
class Drawn:
    """Drawn values; the first axis of every field counts the films."""

    def of(self, films: slice) -> Self:
        """Return what was drawn for some of the films."""
        return replace(self, **{f.name: getattr(self, f.name)[films] for f in fields(self)})
