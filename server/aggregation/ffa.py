"""FFA-LoRA: A stays frozen and B is averaged (Sun et al., 2024, https://arxiv.org/abs/2403.12313).

With one factor common to all sites the message is linear, so the mean is exact. A has
orthonormal rows; with folding it is drawn anew every ``fold_every`` rounds, without which
the adapter can never leave the row space of its first A.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.aggregation import base, linear
from server.aggregation.folding import fold, folds_before
from server.aggregation.optimizers import ServerOptimizer
from shared.adapter import AdapterLayout, AdapterUpdate, Factor, SharedAdapter


@dataclass(frozen=True)
class FfaLora(base.Aggregator):
    """Averages B.

    Attributes:
        fold_every: Rounds between two folds; 0 never folds.
        learning_rate: Of the server; 1 is the plain mean.
        combine: Makes one change of the sites' changes.
        optimizer: Makes a step of that change; the change itself if there is none.
    """

    fold_every: int = 4
    learning_rate: float = 1.0
    combine: base.Combiner = linear.mean_change
    optimizer: ServerOptimizer | None = None

    def open_round(
        self, shared: SharedAdapter, layout: AdapterLayout, round_number: int, seed: int
    ) -> SharedAdapter:
        """Fold where it is time."""
        if folds_before(round_number, self.fold_every):
            return fold(shared, layout, seed)
        return shared

    def trains(self, round_number: int) -> tuple[Factor, ...]:  # noqa: ARG002 - of the protocol
        """Return B."""
        return ("B",)

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the mean change of B: (B + mean D) A is the mean of the (B + D) A."""
        change = self.combine(layout, updates)
        return base.add_change(shared, change, self.learning_rate, self.optimizer)
