"""What a site does in one round: train the phase's factors on its own records."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from client.batches import Batch, PreparedSplit, draw_batches, prepare, steps_of
from client.data.records import SiteData
from client.losses import (
    LossContext,
    PromptSet,
    Teacher,
    ask_teacher,
    batch_loss,
    embed_prompts,
    encode,
    encode_all,
    held_out_losses,
)
from shared.adapter import (
    AdapterLayout,
    Array,
    Factor,
    SharedAdapter,
    Tower,
    factor_name,
)
from shared.config import JobConfig, TrainConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

BETAS = (0.9, 0.98)
_LOWEST_RATE = 0.05

Item = TypeVar("Item")


@dataclass(frozen=True)
class SiteTask:
    """One site's part of a round: what it starts from and which factors it trains."""

    data: SiteData
    start: SharedAdapter
    factors: tuple[Factor, ...]
    seed: int
    round: int


@dataclass(frozen=True)
class TrainedAdapter:
    """What training gave.

    Attributes:
        factors: The trained factors of the site's towers, and nothing else.
        loss: Mean over the steps, in nats.
        steps: Optimiser steps taken.
        gradient_norms: Mean norm of the gradient per trained tower, before clipping.
    """

    factors: dict[str, Array]
    loss: float
    steps: int
    gradient_norms: dict[Tower, float]


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: a warm-up, and a cosine over the whole run down to 5 %.

    Attributes:
        peak: Highest learning rate.
        warmup: Steps until the peak, counted from the first step of this fit.
        total: Steps of the whole run; 0 keeps the rate constant.
        before: Steps of the run that were taken before this fit.
    """

    peak: float
    warmup: int
    total: int = 0
    before: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of this fit, counted from 0."""
        rate = self.peak * min(1.0, (step + 1) / (self.warmup + 1))
        if not self.total:
            return rate
        done = min(1.0, (self.before + step) / self.total)
        return rate * (_LOWEST_RATE + (1 - _LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def train_shared(
    encoder: DualEncoder, tasks: Sequence[SiteTask], job: JobConfig
) -> list[TrainedAdapter]:
    """Train the phase's factors of each task, from its own start and with its own seed.

    Raises:
        TrainingError: ``no-training-data``, ``too-few-records`` or ``loss-not-finite``.
    """
    return [_train_one(encoder, task, job) for task in tasks]


def _train_one(encoder: DualEncoder, task: SiteTask, job: JobConfig) -> TrainedAdapter:
    config = job.train
    train = check_learnable(encoder, task.data)
    steps = steps_of(train, config)
    encoder.use(AdapterView(task.start))
    rng = np.random.default_rng(task.seed)
    plan = list(islice(draw_batches(train, config.batch_size, rng), steps))
    prompts = embed_prompts(encoder, task.data)
    teacher = ask_teacher(encoder, train, plan, lone=config.anchor, paired=0.0)
    schedule = schedule_of(config, total=job.rounds * steps, before=(task.round - 1) * steps)
    towers = task.data.towers
    parameters = encoder.parameters_of("shared", task.factors, towers)
    losses_of = site_loss(encoder, train, prompts, teacher, config, rng)
    result = fit(parameters, plan, losses_of, config, schedule, encoder.layout)
    return TrainedAdapter(
        factors=encoder.read_adapter("shared", task.factors, towers),
        loss=result.loss,
        steps=steps,
        gradient_norms=result.gradient_norms,
    )


def train_local(encoder: DualEncoder, data: SiteData, job: JobConfig, seed: int) -> SharedAdapter:
    """Train an adapter on one site alone: both factors, as many steps as in the federation.

    There is no received model to be anchored to: a lone tower learns from its labels only.
    Towers that the site does not have keep B = 0, which is the base.

    Raises:
        TrainingError: As ``train_shared``.
    """
    config = job.train
    train = check_learnable(encoder, data)
    steps = job.rounds * steps_of(train, config)
    encoder.use(AdapterView(fresh_adapter(encoder.layout, seed)))
    rng = np.random.default_rng(seed)
    # Prompts stay where the base puts them: embedded anew as training goes on, with nobody else
    # to hold the text tower, texts chase their own prompts (AUROC of the archive .68 to .62).
    prompts = embed_prompts(encoder, data)
    teacher = start_as_teacher(encoder, train, prompts, config)
    parameters = encoder.parameters_of("shared", ("A", "B"), data.towers)
    plan = islice(draw_batches(train, config.batch_size, rng), steps)
    losses_of = site_loss(encoder, train, prompts, teacher, config, rng)
    fit(parameters, plan, losses_of, config, schedule_of(config, total=steps), encoder.layout)
    return SharedAdapter(encoder.read_adapter("shared"))


def validation_loss(
    encoder: DualEncoder, data: SiteData, view: AdapterView, job: JobConfig
) -> float | None:
    """Return the mean loss of the validation records under a view, in nats.

    Pairs count with InfoNCE against the validation pairs, lone labelled records with their
    prompt loss; ``None`` if there is neither.
    """
    encoder.use(view)
    prompts = embed_prompts(encoder, data)
    val = prepare(encoder, data, "val")
    features = encode_all(encoder, val, val.everything)
    kappa = job.train.label_similarity
    scores = held_out_losses(features, val, prompts, encoder.logit_scale, kappa)
    return float(scores.losses.mean()) if len(scores.losses) else None


def check_learnable(encoder: DualEncoder, data: SiteData) -> PreparedSplit:
    """Return the prepared training split if there is anything to learn from.

    Raises:
        TrainingError: ``no-training-data``; ``too-few-records`` if no loss has a gradient: one
            pair alone has no negatives, and one or two lone records without labels have
            nothing to be compared with.
    """
    train = prepare(encoder, data, "train")
    everything = train.everything
    lone = np.concatenate([everything.images, everything.texts])
    if not len(lone) and not len(everything.pairs):
        raise TrainingError("no-training-data", f"site {data.name}: no training records")
    labelled = bool(train.labelled[lone].any()) and any(
        finding in data.prompts for finding in data.findings
    )
    related = max(len(everything.images), len(everything.texts)) >= 3
    if len(everything.pairs) < 2 and not labelled and not related:
        raise TrainingError(
            "too-few-records",
            f"site {data.name}: {len(everything.pairs)} pairs and {len(lone)} lone records "
            "without labels; expected two pairs, one labelled record with prompts, or three "
            "lone records",
        )
    return train


def start_as_teacher(
    encoder: DualEncoder, train: PreparedSplit, prompts: PromptSet | None, config: TrainConfig
) -> Teacher | None:
    """Return the view in use as teacher of unlabelled lone records, outside a federation.

    They have nothing else to learn from; labelled ones are not held back by where they began.
    """
    lone = np.concatenate([train.everything.images, train.everything.texts])
    if prompts is not None and bool(train.labelled[lone].all()):
        return None
    taught = prompts is not None and bool(train.labelled[lone].any())
    anchor = 0.0 if taught else config.anchor
    return ask_teacher(encoder, train, [train.everything], lone=anchor, paired=0.0)


def schedule_of(config: TrainConfig, total: int, before: int = 0) -> Schedule:
    """Return the schedule of a fit that is part of a run of ``total`` steps."""
    cosine = config.schedule == "cosine"
    return Schedule(config.learning_rate, config.warmup_steps, total if cosine else 0, before)


def fresh_adapter(layout: AdapterLayout, seed: int) -> SharedAdapter:
    """Return an adapter that changes nothing yet: A with orthonormal rows, B = 0."""
    rng = np.random.default_rng(seed)
    return SharedAdapter(
        {
            name: array
            for layer in layout.layers
            for name, array in fresh_factors(
                layer.module, layer.outputs, layer.inputs, layout.rank, rng
            ).items()
        }
    )


def fresh_factors(
    module: str, outputs: int, inputs: int, rank: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Return A with orthonormal rows (as far as the rank allows) and B = 0 of one layer."""
    noise = rng.standard_normal((inputs, rank))
    orthonormal = np.zeros((inputs, rank))
    orthonormal[:, : min(inputs, rank)] = np.linalg.qr(noise)[0]
    return {
        factor_name(module, "A"): np.ascontiguousarray(orthonormal.T, dtype=np.float32),
        factor_name(module, "B"): np.zeros((outputs, rank), dtype=np.float32),
    }


@dataclass(frozen=True)
class FitResult:
    """Mean loss in nats and mean gradient norm per tower, before clipping."""

    loss: float
    gradient_norms: dict[Tower, float]


def site_loss(
    encoder: DualEncoder,
    prepared: PreparedSplit,
    prompts: PromptSet | None,
    teacher: Teacher | None,
    config: TrainConfig,
    rng: np.random.Generator,
) -> Callable[[Batch], Iterator[Tensor]]:
    """Return the loss of a batch of one site, with shifted pictures."""
    context = LossContext(prompts, teacher, encoder.logit_scale, config.label_similarity)

    def losses_of(batch: Batch) -> Iterator[Tensor]:
        features = encode(encoder, prepared, batch, (config.shift_pixels, rng))
        yield batch_loss(features, prepared, batch, context)

    return losses_of


def fit(
    parameters: Mapping[str, nn.Parameter],
    plan: Iterable[Item],
    losses_of: Callable[[Item], Iterable[Tensor]],
    config: TrainConfig,
    schedule: Schedule,
    layout: AdapterLayout,
) -> FitResult:
    """Train parameters in place with AdamW, one step per item of the plan.

    The losses of an item are added up; each is propagated back before the next is computed, so
    that only one holds memory. AdamW: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
    FedProx (Li et al., 2020, https://arxiv.org/abs/1812.06127) adds mu / 2 times the squared
    distance to the start.

    Raises:
        TrainingError: ``loss-not-finite`` if a loss or a trained factor is not finite.
    """
    trained = list(parameters.values())
    start = [p.detach().clone() for p in trained] if config.proximal else []
    optimizer = torch.optim.AdamW(
        trained, lr=schedule.peak, betas=BETAS, weight_decay=config.weight_decay, fused=True
    )
    losses, norms = [], []
    with trainable(trained):
        for step, item in enumerate(plan):
            optimizer.param_groups[0]["lr"] = schedule.rate(step)
            parts = []
            for part in losses_of(item):
                part.backward()
                parts.append(part.detach())
            losses.append(torch.stack(parts).sum())
            _pull(trained, start, config.proximal)
            norms.append(_norms(trained))
            torch.nn.utils.clip_grad_norm_(trained, config.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return _checked(parameters, torch.stack(losses), torch.stack(norms), layout)


@contextmanager
def trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow into some parameters, and into nothing else, for a while."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _pull(trained: Sequence[nn.Parameter], start: Sequence[Tensor], strength: float) -> None:
    """Add FedProx's gradient, mu (x - start), to what is there."""
    if not strength:
        return
    for parameter, origin in zip(trained, start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - origin, alpha=strength)


def _norms(trained: Sequence[nn.Parameter]) -> Tensor:
    """Gradient norm of every parameter; 0 where the batch gave it none."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    return torch.stack(torch._foreach_norm(grads))


def _checked(
    parameters: Mapping[str, nn.Parameter], losses: Tensor, norms: Tensor, layout: AdapterLayout
) -> FitResult:
    finite = bool(losses.isfinite().all()) and all(
        bool(p.detach().isfinite().all()) for p in parameters.values()
    )
    if not finite:
        raise TrainingError(
            "loss-not-finite",
            "the loss or an adapter became infinite or not a number; train with a smaller "
            "learning rate, or check the pictures and labels for constant values",
        )
    towers = [layout.tower_of(name) for name in parameters]
    by_tower: dict[Tower, float] = {}
    for tower in dict.fromkeys(towers):
        chosen = torch.tensor([t == tower for t in towers], device=norms.device)
        by_tower[tower] = float(norms[:, chosen].square().sum(1).sqrt().mean())
    return FitResult(float(losses.mean()), by_tower)
