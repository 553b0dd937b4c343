"""FLoRA: the sites' adapters are stacked and merged into the base.

Wang et al., 2024, https://arxiv.org/abs/2409.05976.

``[p_1 B_1 ... p_K B_K] [A_1; ...; A_K]`` is the mean of products exactly, of any ranks. It joins
the residual, and every round starts from a new A by seed and B = 0. That lets rank accumulate,
and it costs the sites a fresh start in every round. The paper's weights are on A; on B they
give the same product.

Every update is held until the round closes: memory grows with the cohort.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from server.aggregation import base
from server.aggregation.folding import extended
from server.aggregation.gathered import Gathered
from server.aggregation.lowrank import compact
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    Array,
    SharedAdapter,
    factor_name,
)
from shared.ranks import leading
from shared.seeding import derive_seed


@dataclass(frozen=True)
class Flora(base.Aggregator):
    """Adds the mean of products to the residual and starts afresh."""

    def for_rank(self, shared: SharedAdapter, rank: int) -> SharedAdapter:
        """Return the first rows of A; B is zero, so that nothing is lost."""
        return replace(shared, factors=leading(shared.factors, rank))

    def open_round(
        self,
        shared: SharedAdapter,
        layout: AdapterLayout,
        round_number: int,  # noqa: ARG002 - part of the protocol
        seed: int,
    ) -> SharedAdapter:
        """Draw a new A for every layer; B is zero, so the function stays."""
        factors: dict[str, Array] = {}
        for layer in layout.layers:
            fresh_seed = derive_seed(seed, "lora-A", shared.folds, layer.module)
            factors |= base.fresh_factors(layout, layer, fresh_seed)
        return SharedAdapter(factors, shared.residual, shared.folds)

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Add the mean of the sites' products to the residual; B is zero again."""
        gathered = Gathered.of(layout, updates)
        towers = gathered.towers()
        factors, residual = dict(shared.factors), dict(shared.residual)
        for layer in layout.layers:
            if layer.tower in towers:
                merged = compact(*gathered.stack(shared, layer))
                residual |= extended(shared.residual, layer, *merged)
                name = factor_name(layer.module, "B")
                factors[name] = np.zeros_like(factors[name])
        return SharedAdapter(factors, residual, shared.folds + bool(towers))
