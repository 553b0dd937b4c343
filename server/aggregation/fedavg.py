"""FedIT: both factors are averaged (Zhang et al., 2023, https://arxiv.org/abs/2305.05644).

The product of the means is not the mean of the products, so what is applied differs from
what the sites meant; ``altfold`` and ``ffa`` have no such error. This is the baseline that
everyone knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.aggregation import base, linear
from server.aggregation.optimizers import ServerOptimizer
from shared.adapter import AdapterLayout, AdapterUpdate, SharedAdapter


@dataclass(frozen=True)
class FedAvg(base.Aggregator):
    """Averages A and B, each for itself.

    Attributes:
        learning_rate: Of the server; 1 is the plain mean.
        combine: Makes one change of the sites' changes.
        optimizer: Makes a step of that change; the change itself if there is none.
    """

    learning_rate: float = 1.0
    combine: base.Combiner = linear.mean_change
    optimizer: ServerOptimizer | None = None

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the sites' common change of every factor."""
        change = self.combine(layout, updates)
        return base.add_change(shared, change, self.learning_rate, self.optimizer)
