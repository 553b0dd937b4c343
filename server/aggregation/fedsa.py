"""FedSA-LoRA: A is shared, every site keeps a B of its own.

Guo et al., 2025, https://arxiv.org/abs/2410.01463.

Sites train both factors and send A only. Their functions ``W0 + s B_k A`` differ, no product is
ever averaged, and there is no model for a site that was not in the federation. The rows of A
must mean the same to every B_k, so A keeps its gauge.

This is the coordinator's half. A site must keep its B from round to round, train it beside A
and evaluate with it; a job cannot ask for that yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.aggregation import base, linear
from shared.adapter import AdapterLayout, AdapterUpdate, Factor, SharedAdapter


@dataclass(frozen=True)
class FedSa:
    """Averages A.

    Attributes:
        learning_rate: Of the server; 1 is the plain mean.
        combine: Makes one change of the sites' changes.
    """

    learning_rate: float = 1.0
    combine: base.Combiner = linear.mean_change

    def start(self, layout: AdapterLayout, seed: int) -> SharedAdapter:
        """Return A with orthonormal rows by seed, and B = 0, from which every site starts."""
        return base.start(layout, seed)

    def open_round(
        self,
        shared: SharedAdapter,
        layout: AdapterLayout,  # noqa: ARG002 - part of the protocol
        round_number: int,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> SharedAdapter:
        """Return the adapter as it is."""
        return shared

    def trains(self, round_number: int) -> tuple[Factor, ...]:  # noqa: ARG002
        """Return A: what the sites send."""
        return ("A",)

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the sites' common change of A."""
        return base.add_change(shared, self.combine(layout, updates), self.learning_rate)
