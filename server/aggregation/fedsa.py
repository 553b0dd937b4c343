"""FedSA-LoRA: A is shared, every site keeps a B of its own.

Guo et al., 2025, https://arxiv.org/abs/2410.01463.

Sites train both factors and send A only (``client.own_factor`` keeps B). Their functions
``W0 + s B_k A`` differ, no product is ever averaged, and there is no model for a site that was
not in the federation: the B that the server starts everyone from is zero and stays zero. The rows
of A must mean the same to every B_k, so A is never turned.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.aggregation import base, linear
from server.aggregation.optimizers import ServerOptimizer
from shared.adapter import AdapterLayout, AdapterUpdate, Factor, SharedAdapter


@dataclass(frozen=True)
class FedSa(base.Aggregator):
    """Averages A.

    Attributes:
        learning_rate: Of the server; 1 is the plain mean.
        combine: Makes one change of the sites' changes.
        optimizer: Makes a step of that change; the change itself if there is none.
    """

    learning_rate: float = 1.0
    combine: base.Combiner = linear.mean_change
    optimizer: ServerOptimizer | None = None

    def trains(self, round_number: int) -> tuple[Factor, ...]:  # noqa: ARG002 - of the protocol
        """Return A: what the sites send."""
        return ("A",)

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the sites' common change of A."""
        change = self.combine(layout, updates)
        return base.add_change(shared, change, self.learning_rate, self.optimizer)
