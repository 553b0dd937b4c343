"""A site's half of an exchange of features (CreamFL, Yu et al., 2023).

https://arxiv.org/abs/2302.08888. The site embeds the public pairs with its own model, finds the
rotation that brings these into the space of the common features (``client.bridge``), trains on its
own records with batches of the public pairs beside them, and embeds the pairs once more. That is
what it sends: the model itself stays.

The rotation is worked out anew in every round, from what the round began with. So there is nothing
to remember, a site that joins late is like all others, and turning all features at once, which
changes nothing for the site, costs no training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from client.batches import Batch, PreparedSplit, Rows, prepare
from client.bridge import bridge_between, crossed
from client.encoding import Features, Part, encode_all
from client.proxy import ProxySet
from shared.adapter import TOWERS, Adapter, Array, SharedAdapter, Tower
from shared.config import ProxyConfig
from shared.errors import AdapterMismatchError, TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.objectives.creamfl import inter_modal, intra_modal

_OTHER: dict[Tower, Tower] = {"image": "text", "text": "image"}
_NONE: Rows = np.zeros(0, dtype=np.intp)


@dataclass(frozen=True)
class Exchange:
    """One site's exchange in one round.

    Attributes:
        proxy: The public pairs.
        common: (N, d) common features by tower, L2-normalised.
        towers: The towers that the site trains and sends.
        bridge: (k, d) from the site's space into the common one.
        before: (N, d) by tower: the site's features at the start of the round, in the common space.
        config: Weight and temperature of the contrast.
    """

    proxy: PreparedSplit
    common: Adapter
    towers: tuple[Tower, ...]
    bridge: Array
    before: Adapter
    config: ProxyConfig

    def sent(self, encoder: DualEncoder, model: SharedAdapter) -> dict[Tower, Array]:
        """Return what the site sends: (N, d) features of its model after training, by tower.

        Raises:
            TrainingError: ``embedding-not-finite``.
        """
        own = _features(encoder, model, self.proxy, self.towers)
        return {tower: crossed(features, self.bridge) for tower, features in own.items()}


def begin_exchange(
    encoder: DualEncoder,
    proxy: ProxySet,
    common: Adapter,
    model: SharedAdapter,
    towers: Sequence[Tower],
    config: ProxyConfig,
) -> Exchange:
    """Embed the public pairs with the model that a site starts a round from.

    Args:
        encoder: The site's own; left in the model's view.
        proxy: The public pairs.
        common: As received; checked by ``check_common``.
        model: The site's.
        towers: Those that the site trains.
        config: Weight and temperature of the contrast.

    Raises:
        TrainingError: ``embedding-not-finite``.
    """
    prepared = prepare(encoder, proxy.data, "train")
    own = _features(encoder, model, prepared, towers)
    bridge = bridge_between(
        np.concatenate([own[tower] for tower in towers]),
        np.concatenate([common[tower] for tower in towers]),
    )
    before: dict[str, Array] = {tower: crossed(own[tower], bridge) for tower in towers}
    return Exchange(prepared, common, tuple(towers), bridge, before, config)


def check_common(common: Adapter, items: int) -> None:
    """Raise unless received features are (items, d) for both towers, and unit vectors.

    Raises:
        AdapterMismatchError: Naming the tower.
    """
    shapes = {tower: common[tower].shape for tower in TOWERS if tower in common}
    if set(common) != set(TOWERS) or len(set(shapes.values())) != 1:
        raise AdapterMismatchError(f"features: expected both towers alike, got {sorted(common)}")
    shape = next(iter(shapes.values()))
    if len(shape) != 2 or shape[0] != items:
        raise AdapterMismatchError(f"features: expected {items} rows, got shape {shape}")
    for tower, features in common.items():
        lengths = np.linalg.norm(features, axis=1)
        if not np.allclose(lengths, 1.0, atol=1e-2):  # not a number is not near to 1 either
            raise AdapterMismatchError(f"features of {tower}: not all of length one")


def embedded(
    encoder: DualEncoder, model: SharedAdapter, proxy: ProxySet, towers: Sequence[Tower]
) -> dict[Tower, Array]:
    """Return (N, k) features of all public items by tower, in the encoder's own space.

    Raises:
        TrainingError: ``embedding-not-finite``.
    """
    return _features(encoder, model, prepare(encoder, proxy.data, "train"), towers)


def _features(
    encoder: DualEncoder, model: SharedAdapter, proxy: PreparedSplit, towers: Sequence[Tower]
) -> dict[Tower, Array]:
    encoder.use(AdapterView(shared=model))
    found = encode_all(encoder, proxy, _batch(np.arange(len(proxy.split)), towers))
    features: dict[Tower, Array] = {}
    for tower, of_tower in zip(TOWERS, (found.image, found.text), strict=True):
        if tower in towers:
            features[tower] = of_tower.float().cpu().numpy()
            if not np.isfinite(features[tower]).all():
                raise TrainingError(
                    "embedding-not-finite",
                    f"the {tower} features of the public set are not finite: the adapter has "
                    "diverged; train with a smaller learning rate",
                )
    return features


def _batch(rows: Rows, towers: Sequence[Tower]) -> Batch:
    """Return items as a batch of what the site encodes of them."""
    if set(towers) == set(TOWERS):
        return Batch(rows, _NONE, _NONE)
    return Batch(_NONE, rows, _NONE) if "image" in towers else Batch(_NONE, _NONE, rows)


# Public batches beside the site's own


@dataclass(frozen=True)
class Contrast:
    """What the loss of a public batch needs beside the batch; on the encoder's device.

    Attributes:
        common: (N, d) by tower.
        before: (N, d) by tower.
        bridge: (k, d).
        config: Weight and temperature.
    """

    common: dict[Tower, Tensor]
    before: dict[Tower, Tensor]
    bridge: Tensor
    config: ProxyConfig = field(repr=False)

    def loss(self, features: Features, batch: Batch) -> Tensor:
        """Return the weighted loss of a batch in nats: both losses, summed over towers."""
        temperature = self.config.contrast_temperature
        total = self.bridge.new_zeros(())
        by_tower: dict[Tower, tuple[Tensor, Rows]] = {
            "image": (features.image, batch.with_image),
            "text": (features.text, batch.with_text),
        }
        for tower, (own, rows) in by_tower.items():
            if not len(rows):
                continue
            items = torch.from_numpy(rows).to(own.device)
            brought = normalize(own @ self.bridge, dim=-1)
            inter = inter_modal(brought, self.common[_OTHER[tower]], items, temperature)
            same, old = self.common[tower][items], self.before[tower][items]
            intra = intra_modal(brought, same, old, temperature)
            total = total + (inter + intra).mean()
        return self.config.contrast * total


def public_parts(
    exchange: Exchange, encoder: DualEncoder, batch_size: int, row: int, seed: int
) -> Iterator[tuple[Part, Contrast]]:
    """Yield batches of the public pairs with their loss, for ever; permutation after permutation.

    Args:
        exchange: The site's.
        encoder: Says where to compute.
        batch_size: Items of a batch.
        row: Of the stack that the site trains.
        seed: Of the permutations.
    """
    device = encoder.device
    contrast = Contrast(
        {tower: torch.tensor(exchange.common[tower]).to(device) for tower in TOWERS},
        {tower: torch.tensor(exchange.before[tower]).to(device) for tower in exchange.towers},
        torch.tensor(exchange.bridge).to(device),
        exchange.config,
    )
    rng = np.random.default_rng(seed)
    count = len(exchange.proxy.split)
    size = min(count, batch_size)
    while True:
        order = rng.permutation(count)
        for first in range(0, count - size + 1, size):
            batch = _batch(order[first : first + size], exchange.towers)
            yield Part(exchange.proxy, batch, row), contrast
