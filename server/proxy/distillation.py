"""Distils the sites' adapters into the shared one on a public paired set, at the server.

FedDF (Lin et al., 2020, https://arxiv.org/abs/2006.07242) with the ensemble of CreamFL (Yu et al.,
2023, https://arxiv.org/abs/2302.08888), but without its upload: every site's adapter is here
already, so the server embeds the public pairs itself. With teachers G* (the ensemble) and G0 (the
aggregated adapter), the trained factors descend

    D(G, G*) + weight D(G, G0),   D = FD + CRD / 2,

and what comes out replaces G0 only if the InfoNCE loss of held-out pairs is lower with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.proxy.pairs import ProxyPairs, Rows
from server.proxy.step import RoundUpdates
from server.proxy.weights import contrast_weights, ensemble
from shared.adapter import (
    TOWERS,
    AdapterLayout,
    AdapterUpdate,
    Array,
    SharedAdapter,
    Tower,
)
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.stack import AdapterStack
from shared.model.view import AdapterView
from shared.objectives.anchor import anchor
from shared.objectives.crd import crd
from shared.objectives.infonce import infonce, pair_targets
from shared.ranks import filled, leading
from shared.results import ProxyStep
from shared.seeding import derive_seed

_BETAS = (0.9, 0.98)
_CHUNK = 64
_BLOCK = 1024
"""Held-out pairs that are each other's negatives."""

Embedded = dict[Tower, NDArray[np.float32]]
"""(n, d) unit embeddings of some pairs by tower."""


@dataclass(frozen=True)
class _Goal:
    """Where the features of some pairs should be: a teacher's, (n, d) each."""

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, embedded: Embedded, device: torch.device) -> "_Goal":
        image, text = (torch.from_numpy(embedded[tower]).to(device) for tower in TOWERS)
        return cls(image, text)

    def gap(self, image: Tensor, text: Tensor, rows: Tensor, scale: float) -> Tensor:
        """Return D = FD + CRD / 2 of a batch, in nats, as sites weigh them."""
        goal_image, goal_text = self.image[rows], self.text[rows]
        nearness = anchor(image, goal_image) + anchor(text, goal_text)
        return (scale * nearness + 0.5 * crd(image, text, goal_image, goal_text, scale)).mean()


class ProxyDistillation:
    """A ``Distiller`` with an encoder and pairs of its own.

    Args:
        encoder: Nobody else's: sites may still be training when a round closes.
        pairs: The public set.
        job: Its ``[proxy]``, seed, batch size and largest gradient norm.

    Raises:
        DataError: If there are too few pairs.
    """

    def __init__(self, encoder: DualEncoder, pairs: ProxyPairs, job: JobConfig) -> None:
        self._encoder, self._pairs, self._job = encoder, pairs, job
        seed = derive_seed(job.seed, "proxy-held-out")
        self._train, self._held = pairs.divided(job.proxy.held_out, seed)
        self._token_ids = encoder.token_ids(pairs.texts)
        self._text_numbers = np.unique(pairs.texts, return_inverse=True)[1].astype(np.int64)

    def distil(
        self, aggregated: SharedAdapter, came: RoundUpdates
    ) -> tuple[SharedAdapter, ProxyStep]:
        """Return the distilled adapter if it is better on held-out pairs, else the aggregated."""
        towers = [t for t in TOWERS if any(t in update.weights for update in came.updates)]
        before = self._held_out_loss(aggregated)
        common = self._embed(aggregated, self._train, TOWERS)
        teacher = self._ensemble(common, towers, came)
        distilled = self._fit(aggregated, common, teacher, towers, came)
        if not all(np.isfinite(values).all() for values in distilled.factors.values()):
            return aggregated, ProxyStep(before=before, after=None, accepted=False)
        after = self._held_out_loss(distilled)
        if not np.isfinite(after):
            return aggregated, ProxyStep(before=before, after=None, accepted=False)
        step = ProxyStep(before=before, after=after, accepted=after < before)
        return (distilled if step.accepted else aggregated), step

    def _ensemble(self, common: Embedded, towers: Sequence[Tower], came: RoundUpdates) -> Embedded:
        """Return the sites' common embeddings; a tower that nobody trained stays where it is."""
        own: dict[Tower, list[NDArray[np.float32]]] = {tower: [] for tower in towers}
        for update in came.updates:  # one site's function at a time
            function = site_adapter(came.received, self._encoder.layout, update)
            embedded = self._embed(function, self._train, tuple(update.weights))
            for tower in towers:
                own[tower].append(embedded.get(tower, np.zeros_like(common[tower])))
        # The logits of a base are in units of its own temperature.
        temperature = 1 / self._encoder.logit_scale
        goal = dict(common)
        for tower in towers:
            sites = np.stack(own[tower])
            owners = np.array([tower in update.weights for update in came.updates])
            others = common["text" if tower == "image" else "image"]
            weights = contrast_weights(
                sites, owners, others, temperature, self._job.proxy.temperature
            )
            goal[tower] = ensemble(sites, weights).astype(np.float32)
        return goal

    def _fit(
        self,
        start: SharedAdapter,
        common: Embedded,
        teacher: Embedded,
        towers: Sequence[Tower],
        came: RoundUpdates,
    ) -> SharedAdapter:
        """Descend from the aggregated adapter; only what the sites trained moves."""
        encoder, config = self._encoder, self._job.proxy
        goal, stay = _Goal.of(teacher, encoder.device), _Goal.of(common, encoder.device)
        stack = encoder.new_stack(1)
        stack.put(0, start.factors)
        encoder.use_stack(stack, AdapterView(SharedAdapter({}, start.residual, start.folds)))
        stack.train(came.factors)
        parameters = _parameters(stack, came, towers)
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=_BETAS, weight_decay=0.0, fused=True
        )
        batches = self._batches(derive_seed(self._job.seed, "proxy", came.round))
        for _ in range(config.steps):
            places = next(batches)
            image, text = self._features(self._train[places])
            rows = torch.from_numpy(places).to(encoder.device)
            loss = goal.gap(image, text, rows, encoder.logit_scale)
            if config.weight:
                loss = loss + config.weight * stay.gap(image, text, rows, encoder.logit_scale)
            stack.gradients.zero_()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self._job.train.max_gradient_norm)
            optimizer.step()
        stack.train(())
        moved = stack.read(0, came.factors, towers)
        factors = {**start.factors, **moved}
        return SharedAdapter(factors, start.residual, start.folds, start.state)

    def _batches(self, seed: int) -> Iterator[Rows]:
        """Yield places among the pairs to distil on, for ever: permutation after permutation."""
        rng = np.random.default_rng(seed)
        count = len(self._train)
        size = min(count, self._job.train.batch_size)
        while True:
            order = rng.permutation(count)
            for first in range(0, count - size + 1, size):
                yield order[first : first + size]

    @torch.no_grad()
    def _held_out_loss(self, shared: SharedAdapter) -> float:
        """Return the mean InfoNCE loss of the held-out pairs, in nats."""
        embedded = _Goal.of(self._embed(shared, self._held, TOWERS), torch.device("cpu"))
        losses = []
        for block in np.array_split(np.arange(len(self._held)), -(-len(self._held) // _BLOCK)):
            numbers = torch.from_numpy(self._text_numbers[self._held[block]])
            unlabelled = torch.zeros(len(block), 0), torch.zeros(len(block), dtype=torch.bool)
            targets = pair_targets(numbers, *unlabelled, 0.0)
            image, text = embedded.image[block], embedded.text[block]
            losses.append(infonce(image, text, targets, self._encoder.logit_scale))
        return float(torch.cat(losses).double().mean())

    @torch.no_grad()
    def _embed(self, shared: SharedAdapter, rows: Rows, towers: Sequence[Tower]) -> Embedded:
        """Return the embeddings of some pairs under an adapter, in the given towers."""
        self._encoder.use(AdapterView(shared))
        chunks = [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]
        of_tower = {"image": self._images, "text": self._texts}
        return {
            tower: torch.cat([of_tower[tower](chunk, None) for chunk in chunks]).cpu().numpy()
            for tower in towers
        }

    def _features(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the features of a batch under the stack in use, with gradients."""
        return self._images(rows, [len(rows)]), self._texts(rows, [len(rows)])

    def _images(self, rows: Rows, counts: Sequence[int] | None) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(self._pairs.pixels[rows]))
        return self._encoder.encode_images(pixels, counts)

    def _texts(self, rows: Rows, counts: Sequence[int] | None) -> Tensor:
        tokens = self._encoder.pad([self._token_ids[row] for row in rows])
        return self._encoder.encode_texts(tokens, counts)


def site_adapter(
    received: SharedAdapter, layout: AdapterLayout, update: AdapterUpdate
) -> SharedAdapter:
    """Return the adapter that a site trained: what it received plus its change."""
    factors: dict[str, Array] = dict(received.factors)
    for name, steps in update.delta.items():
        size = update.scale * update.weights[layout.tower_of(name)]
        factors[name] = factors[name] + (steps.view(np.int32) / size).astype(np.float32)
    if update.rank is not None:  # the site had no further columns
        factors = dict(filled(leading(factors, update.rank), layout))
    return SharedAdapter(factors, received.residual, received.folds)


def _parameters(stack: AdapterStack, came: RoundUpdates, towers: Sequence[Tower]) -> list[Tensor]:
    """Return the parts of the stack that the sites trained, with their gradients."""
    parameters = []
    for _, columns in stack.slices(came.factors, towers):
        parameter = stack.values[0, columns].detach()
        parameter.grad = stack.gradients[0, columns]
        parameters.append(parameter)
    return parameters
