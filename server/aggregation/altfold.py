"""ALT-FOLD: one factor per round, an orthonormal gauge, and periodic folding.

Alternation is RoLoRA's (Chen et al., 2024, https://arxiv.org/abs/2409.02346); the gauge and
the folding are ours. Every message is linear in what the sites train, so the mean is exact:
``sum p_k (B + D_k) A = (B + sum p_k D_k) A``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.aggregation import base, linear
from server.aggregation.folding import fold, folds_before
from server.aggregation.gauge import orthonormal_gauge
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    Array,
    Factor,
    SharedAdapter,
    factor_name,
)


@dataclass(frozen=True)
class AltFold(base.Aggregator):
    """Averages B and A in turn.

    Attributes:
        fold_every: Rounds between two folds; 0 never folds.
        learning_rate: Of the server; 1 is the plain mean.
        combine: Makes one change of the sites' changes.
    """

    fold_every: int = 4
    learning_rate: float = 1.0
    combine: base.Combiner = linear.mean_change

    def open_round(
        self, shared: SharedAdapter, layout: AdapterLayout, round_number: int, seed: int
    ) -> SharedAdapter:
        """Fold where it is time, and make the factor that is not trained orthonormal."""
        if folds_before(round_number, self.fold_every):
            return fold(shared, layout, seed)
        (trained,) = self.trains(round_number)
        factors: dict[str, Array] = {}
        for layer in layout.layers:
            name_a, name_b = factor_name(layer.module, "A"), factor_name(layer.module, "B")
            factors[name_b], factors[name_a] = orthonormal_gauge(
                shared.factors[name_b], shared.factors[name_a], trained
            )
        return SharedAdapter(factors, shared.residual, shared.folds)

    def trains(self, round_number: int) -> tuple[Factor, ...]:
        """Return B in odd and A in even rounds, counted from the last fold.

        After a fold B is zero, so A would have no gradient: every stretch begins with B.
        """
        position = (round_number - 1) % self.fold_every if self.fold_every else round_number - 1
        return ("A",) if position % 2 else ("B",)

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the sites' common change of the factor that was trained."""
        return base.add_change(shared, self.combine(layout, updates), self.learning_rate)
