"""FedIT: both factors are averaged (Zhang et al., 2023, https://arxiv.org/abs/2305.05644).

The product of the means is not the mean of the products, so what is applied differs from
what the sites meant; ``altfold`` and ``ffa`` have no such error. This is the baseline that
everyone knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.aggregation import base, linear
from shared.adapter import AdapterLayout, AdapterUpdate, Factor, SharedAdapter


@dataclass(frozen=True)
class FedAvg:
    """Averages A and B, each for itself.

    Attributes:
        learning_rate: Of the server; 1 is the plain mean.
    """

    learning_rate: float = 1.0

    def start(self, layout: AdapterLayout, seed: int) -> SharedAdapter:
        """Return A with orthonormal rows by seed, and B = 0."""
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
        """Return both factors."""
        return ("A", "B")

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the mean change of every factor."""
        return linear.add_mean(shared, layout, updates, self.learning_rate)
