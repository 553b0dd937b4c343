"""FedEx-LoRA: means of the factors, and what they miss in the residual.

Singhal et al., 2025, https://arxiv.org/abs/2410.09432.

The factors are averaged as in FedIT. What that misses of the mean of products,
``sum p_k B_k A_k - mean(B) mean(A) = sum p_k (B_k - mean(B)) (A_k - mean(A))``, is added to the
residual, so that every round is exact. The authors' published code adds its transpose, which is
right only where weights are stored as (inputs, outputs); here B is (outputs, r) and A
(r, inputs) everywhere, and the encoder alone knows how it stores a weight.

A site that missed rounds gets the whole residual with its next question, because requests name
the residual by its digest. Every update is held until the round closes: memory grows with the
cohort.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from server.aggregation import base, linear
from server.aggregation.folding import extended
from server.aggregation.gathered import Gathered
from server.aggregation.lowrank import compact
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    Array,
    LayerShape,
    SharedAdapter,
    factor_name,
)


@dataclass(frozen=True)
class FedEx(base.Aggregator):
    """Averages both factors and adds what the product of the means misses to the residual."""

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the mean change of every factor, and the missing products to the residual."""
        gathered = Gathered.of(layout, updates)
        towers = gathered.towers()
        applied = base.add_change(shared, linear.mean_change(layout, gathered.updates), 1.0)
        residual = dict(shared.residual)
        for layer in layout.layers:
            if layer.tower in towers:
                residual |= extended(shared.residual, layer, *_missing(gathered, layer))
        return SharedAdapter(applied.factors, residual, shared.folds + bool(towers))


def _missing(gathered: Gathered, layer: LayerShape) -> tuple[Array, Array]:
    """Return factors of ``sum p_k (B_k - mean(B)) (A_k - mean(A))``."""
    shares = gathered.shares(layer.tower)
    of_b, of_a = (gathered.changes(factor_name(layer.module, f)) for f in ("B", "A"))
    of_b -= np.tensordot(shares, of_b, axes=1)
    of_a -= np.tensordot(shares, of_a, axes=1)
    of_b *= shares[:, None, None]
    left = of_b.transpose(1, 0, 2).reshape(layer.outputs, -1)
    return compact(left, of_a.reshape(-1, layer.inputs))
