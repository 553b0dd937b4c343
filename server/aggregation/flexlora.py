"""FlexLoRA: the best product of rank r for the mean of products.

Bai et al., 2024, https://arxiv.org/abs/2402.11505.

The mean ``sum p_k B_k A_k`` has a rank of up to r per site; it is cut to the r largest singular
values, which by Eckart and Young is as near as rank r can come. The tail beyond them is dropped,
as in the paper, or moves into the residual, which makes the rule exact.

A site of smaller rank q is sent the q largest singular values, and what it returns is a product
of rank q: as in the paper, what it was not sent is not in its part of the mean.

Every update is held until the round closes: memory grows with the cohort.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from server.aggregation import base
from server.aggregation.folding import extended
from server.aggregation.gathered import Gathered
from server.aggregation.lowrank import compact, nearest
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    Array,
    LayerShape,
    SharedAdapter,
    factor_name,
)
from shared.ranks import leading


@dataclass(frozen=True)
class FlexLora(base.Aggregator):
    """Averages products.

    Attributes:
        tail: What becomes of the mean beyond rank r: ``drop`` loses it, ``fold`` adds it to the
            residual, whose rank grows up to the layer's.
    """

    tail: Literal["drop", "fold"] = "drop"

    def for_rank(self, shared: SharedAdapter, rank: int) -> SharedAdapter:
        """Return the first columns: in order of singular values, the best product of that rank."""
        return replace(shared, factors=leading(shared.factors, rank))

    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Put the mean of the sites' products, cut to rank r, in the place of B A."""
        gathered = Gathered.of(layout, updates)
        towers = gathered.towers()
        factors, residual = dict(shared.factors), dict(shared.residual)
        for layer in layout.layers:
            if layer.tower in towers:
                kept, tail = self._cut(gathered, shared, layer)
                factors |= kept
                residual |= tail
        folded = self.tail == "fold" and bool(towers)
        return SharedAdapter(factors, residual, shared.folds + folded)

    def _cut(
        self, gathered: Gathered, shared: SharedAdapter, layer: LayerShape
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the new factors of a layer, and its part of the residual if that changes."""
        left, right = gathered.stack(shared, layer)
        rank = gathered.layout.rank
        mean_a = right.reshape(-1, rank, layer.inputs).mean(axis=0)
        b, a = nearest(left, right, rank, guess=mean_a).balanced(rank)
        kept = {factor_name(layer.module, "B"): b, factor_name(layer.module, "A"): a}
        if self.tail == "drop":
            return kept, {}
        beyond = compact(np.hstack([left, -b]), np.vstack([right, a]))
        return kept, extended(shared.residual, layer, *beyond)
