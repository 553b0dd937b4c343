"""CreamFL: sites exchange features of public pairs, and no parameter (Yu et al., 2023).

https://arxiv.org/abs/2302.08888. Every site sends what its own model makes of the public items;
per item and tower these are averaged by how well each tells the right counterpart from the wrong
ones (``server.proxy.weights``). No weight of any model is sent, so that every site may have a base
of its own. Before the first round the common features are those of the job's base.

The paper distils the ensemble into a model at the server and sends that model's features; here the
ensemble itself is sent, and there is no model but the sites' own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from server.aggregation import base
from server.proxy.weights import contrast_weights, ensemble
from shared.adapter import TOWERS, Adapter, AdapterLayout, AdapterUpdate, SharedAdapter, Tower

_OTHER: dict[Tower, Tower] = {"image": "text", "text": "image"}


@dataclass(frozen=True)
class CreamFl(base.Aggregator):
    """Averages the sites' features of public pairs.

    Attributes:
        temperature: Of the sites' weights per item; the paper has 1.
        first: Features before the first round by tower, (N, d), L2-normalised; which they are is
            the run's to say (``server.first_features``), and no rule can work them out.
    """

    temperature: float = 1.0
    first: Adapter = field(default_factory=dict)

    def start(self, layout: AdapterLayout, seed: int) -> SharedAdapter:  # noqa: ARG002
        """Return the features that the first round begins with; there are no factors."""
        return SharedAdapter({}, features=self.first)

    def aggregate(
        self,
        shared: SharedAdapter,
        layout: AdapterLayout,  # noqa: ARG002 - the sites' layers are their own
        updates: Iterable[AdapterUpdate],
    ) -> SharedAdapter:
        """Return the weighted means; a tower that no site sent keeps every bit."""
        by_site = sorted(updates, key=lambda update: update.site)  # sums depend on the order
        features = dict(shared.features)
        for tower in TOWERS:
            sent = [update.features[tower] for update in by_site if tower in update.features]
            if sent:
                embeddings = np.stack(sent).astype(np.float32)
                everyone = np.ones(len(sent), np.bool_)
                others = shared.features[_OTHER[tower]]
                weights = contrast_weights(
                    embeddings, everyone, others, weight_temperature=self.temperature
                )
                features[tower] = ensemble(embeddings, weights).astype(np.float32)
        return replace(shared, features=features)
