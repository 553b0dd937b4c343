"""What lies where in the vector that is summed: the change, the weights, the measures.

A site that does not train a tower puts zeros in its place, and weight 0 after it. All entries are
integers modulo 2**32, the very ones that a site sends without secure aggregation, so the sum over
the sites has the same bits either way. The weights are part of the vector: what a site weighs is
as hidden as its change, and the sum is divided by the weights of those that are in it.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.adapter import AdapterUpdate, Tower
from shared.errors import SecureSumError
from shared.fixedpoint import LARGEST
from shared.security.canonical import canonical

SUM_OF_SITES: Final = "sum-of-sites"
"""Stands for the name of a site in the update that is a sum."""


@dataclass(frozen=True)
class Measure:
    """A number that is summed over the sites, such as a loss times the records it is of.

    Attributes:
        name: What it is.
        step: What one step of fixed point stands for; a power of two.
        largest: No site's number is larger, or smaller than minus this.
    """

    name: str
    step: float
    largest: float


@dataclass(frozen=True)
class SiteVector:
    """What one site puts into the sum; see ``VectorForm``.

    Attributes:
        change: ``weight * change`` in fixed point by factor, of the towers that it trained.
        weights: Integer weight per tower that it trained.
        measures: Numbers by name; all of the form's.
    """

    change: Mapping[str, NDArray[np.uint32]]
    weights: Mapping[Tower, int]
    measures: Mapping[str, float]


@dataclass(frozen=True)
class VectorForm:
    """The form of the vector; all sites of a session have the same.

    Attributes:
        factors: Name, tower and shape of every factor, in their order.
        measures: After the weights.
        sites: So many take part, at most.
    """

    factors: tuple[tuple[str, Tower, tuple[int, ...]], ...]
    measures: tuple[Measure, ...]
    sites: int

    def __post_init__(self) -> None:
        for each in self.measures:
            if not 0 < each.largest / each.step * self.sites + self.sites <= LARGEST:
                raise ValueError(
                    f"{each.name}: {self.sites} times {each.largest:g} in steps of {each.step:g} "
                    "does not fit 32 bits"
                )

    @cached_property
    def towers(self) -> tuple[Tower, ...]:
        """The towers of the factors, in the order of their weights."""
        return tuple(dict.fromkeys(tower for _, tower, _ in self.factors))

    @cached_property
    def spans(self) -> Mapping[str, slice]:
        """Where every factor is."""
        spans, start = {}, 0
        for name, _, shape in self.factors:
            spans[name] = slice(start, start + math.prod(shape))
            start = spans[name].stop
        return spans

    @property
    def entries(self) -> int:
        """Length of the vector."""
        return self._end + len(self.towers) + len(self.measures)

    @property
    def _end(self) -> int:
        """Entries of all factors."""
        return sum(math.prod(shape) for _, _, shape in self.factors)

    @property
    def digest(self) -> str:
        """sha256 of everything in the form; part of the session."""
        said = {
            "factors": [[name, tower, list(shape)] for name, tower, shape in self.factors],
            "measures": [[each.name, each.step, each.largest] for each in self.measures],
            "sites": self.sites,
        }
        return hashlib.sha256(canonical("secure-sum form 1", said)).hexdigest()

    def write(self, of_site: SiteVector) -> NDArray[np.uint32]:
        """Return a site's vector, (entries,).

        Raises:
            SecureSumError: ``secure-form`` if a factor is missing, of another shape, or of a tower
                without a weight; ``secure-range`` for a weight or measure that does not fit.
        """
        vector = np.zeros(self.entries, np.uint32)
        trained = {name for name, tower, _ in self.factors if tower in of_site.weights}
        if of_site.change.keys() != trained or not set(of_site.weights) <= set(self.towers):
            raise SecureSumError("secure-form", "other factors than those of the round")
        for name, _, shape in self.factors:
            if name in trained:
                values = of_site.change[name]
                if values.shape != shape or values.dtype != np.uint32:
                    raise SecureSumError("secure-form", f"{name}: expected {shape} of uint32")
                vector[self.spans[name]] = values.reshape(-1)
        for place, tower in enumerate(self.towers, self._end):
            weight = of_site.weights.get(tower, 0)
            if not 0 <= weight * self.sites <= LARGEST:
                raise SecureSumError("secure-range", f"{tower}: weight {weight} does not fit")
            vector[place] = weight
        if of_site.measures.keys() != {each.name for each in self.measures}:
            raise SecureSumError("secure-form", "other measures than those of the round")
        for place, each in enumerate(self.measures, self._end + len(self.towers)):
            value = of_site.measures[each.name]
            if not abs(value) <= each.largest:  # not-a-number is no number up to anything
                raise SecureSumError("secure-range", f"{each.name}: not finite, or too large")
            vector[place] = np.int32(round(value / each.step)).view(np.uint32)
        return vector

    def read(self, total: NDArray[np.uint32], scale: float) -> AdapterUpdate:
        """Return a sum of vectors as one update; its mean change is that of all sites in it.

        Args:
            total: (entries,).
            scale: The round's steps per unit.

        Raises:
            SecureSumError: ``secure-form`` if the total has another length, or a tower that
                nobody weighed is not zero.
        """
        if total.shape != (self.entries,) or total.dtype != np.uint32:
            raise SecureSumError("secure-form", f"expected {self.entries} entries of uint32")
        found = total[self._end : self._end + len(self.towers)]
        weights = {t: int(w) for t, w in zip(self.towers, found, strict=True) if w}
        change = {}
        for name, tower, shape in self.factors:
            values = total[self.spans[name]].reshape(shape)
            if tower in weights:
                change[name] = values
            elif values.any():
                raise SecureSumError("secure-form", f"{name}: changed, and no site weighs it")
        steps = total[self._end + len(self.towers) :].view(np.int32)
        measures = {m.name: float(s) * m.step for m, s in zip(self.measures, steps, strict=True)}
        return AdapterUpdate(SUM_OF_SITES, weights, change, scale, measures)
