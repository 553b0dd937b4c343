"""What sites do in one round: train the phase's factors on their own records, side by side."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from client.batches import Batch, PreparedSplit, draw_batches, prepare, steps_of
from client.data.records import SiteData
from client.device_faults import (
    DEVICE_LOST,
    device_lost,
    does_not_fit,
    is_out_of_memory,
    lost_device,
)
from client.encoding import Part
from client.features import Exchange, public_parts
from client.fitting import Block, FitResult, Learner, Schedule, fit
from client.losses import LossContext, PromptSet, Teacher, ask_teacher, embed_prompts
from client.prefix_cache import keep_prefixes
from shared.adapter import AdapterLayout, Array, Factor, SharedAdapter, Tower, factor_name
from shared.config import JobConfig, TrainConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.seeding import derive_seed

_log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SiteTask:
    """One site's part of a round: what it starts from and which factors it trains.

    ``exchange`` is of jobs whose sites exchange features of public pairs, ``rank`` of sites that
    train the first columns only.
    """

    data: SiteData
    start: SharedAdapter
    factors: tuple[Factor, ...]
    seed: int
    round: int
    exchange: Exchange | None = None
    rank: int | None = None


@dataclass(frozen=True)
class TrainedAdapter:
    """What training gave.

    Attributes:
        factors: The trained factors of the site's towers, and nothing else.
        loss: Mean over the steps, in nats; ``None`` where it may not be told.
        steps: Optimiser steps taken.
        gradient_norms: Mean norm of the gradient per trained tower, before clipping.
        discrepancy: How far ahead each tower is, if both are trained (``client.balance``).
    """

    factors: dict[str, Array]
    loss: float | None
    steps: int
    gradient_norms: dict[Tower, float]
    discrepancy: dict[Tower, float]


def train_shared(
    encoder: DualEncoder, tasks: Sequence[SiteTask], job: JobConfig
) -> list[TrainedAdapter | TrainingError]:
    """Train the phase's factors of each task, from its own start and with its own seed.

    All tasks of one round train in one cohort; what a task gives does not depend, beyond
    rounding, on which others are in it.

    Returns:
        Per task what training gave, or why it could not: ``no-training-data``,
        ``too-few-records``, ``loss-not-finite``, ``out-of-memory`` or ``device-lost``.
    """
    results: dict[int, TrainedAdapter | TrainingError] = {}
    for numbers in _alike([_foundation(task) for task in tasks]):
        chosen = [tasks[number] for number in numbers]
        found = in_halves(lambda some: _train_cohort(encoder, some, job), chosen)
        results |= dict(zip(numbers, found, strict=True))
    return [results[number] for number in range(len(tasks))]


def _foundation(task: SiteTask) -> object:
    """What all members of a cohort must have in common.

    By content: which objects are the same depends on the process's history, and a site's bits
    depend on who is in its cohort.
    """
    return task.start.residual_sha256, task.factors


def _alike(keys: Sequence[object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def in_halves(
    train: Callable[[Sequence[Task]], list[Result | TrainingError]], tasks: Sequence[Task]
) -> list[Result | TrainingError]:
    """Train tasks together; if memory does not suffice, in two halves, and so on.

    Every task starts anew from its own start and seed, so that halving changes no result
    beyond rounding. On a device that is gone nothing is tried again.
    """
    try:
        return train(tasks)
    except (MemoryError, RuntimeError) as error:
        words = lost_device(error)
        if words is None and not is_out_of_memory(error):
            raise
    if words is not None:
        lost = device_lost(words)
        _log.error("%s", lost)
        return [lost] * len(tasks)
    # Outside of the handler, whose traceback would keep the failed attempt's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(tasks) == 1:
        too_much = does_not_fit()
        _log.warning("%s", too_much)
        return [too_much]
    half = len(tasks) // 2
    _log.warning("out of memory with %d sites at once; going on with %d", len(tasks), half)
    return [*in_halves(train, tasks[:half]), *in_halves(train, tasks[half:])]


def _train_cohort(
    encoder: DualEncoder, tasks: Sequence[SiteTask], job: JobConfig
) -> list[TrainedAdapter | TrainingError]:
    learners: list[Learner] = []
    results: list[TrainedAdapter | TrainingError | None] = []
    rows: list[SiteTask] = []
    for task in tasks:
        try:
            learners.append(_learner(encoder, task, job, row=len(rows)))
        except TrainingError as error:
            results.append(error)
        else:
            rows.append(task)
            results.append(None)
    if rows:
        stack = encoder.new_stack(len(rows))
        for row, task in enumerate(rows):
            stack.put(row, task.start.factors)
        start = rows[0].start
        encoder.use_stack(stack, AdapterView(SharedAdapter({}, start.residual, start.folds)))
        fitted = fit(encoder, stack, learners, rows[0].factors, job.train)
        found = iter(
            _trained(result, stack.read(row, rows[row].factors, learners[row].towers))
            for row, result in enumerate(fitted)
        )
        results = [next(found) if result is None else result for result in results]
        encoder.use(AdapterView())
    return [result for result in results if result is not None]


def _trained(
    result: FitResult | TrainingError, factors: dict[str, Array]
) -> TrainedAdapter | TrainingError:
    if isinstance(result, TrainingError):
        return result
    return TrainedAdapter(
        factors, result.loss, result.steps, result.gradient_norms, result.discrepancy
    )


def _learner(encoder: DualEncoder, task: SiteTask, job: JobConfig, row: int) -> Learner:
    config = job.train
    train = check_learnable(encoder, task.data)
    steps = steps_of(train, config)
    keep_prefixes(encoder, train, job, training=True)
    encoder.use(AdapterView(task.start))
    rng = np.random.default_rng(task.seed)
    plan = list(islice(draw_batches(train, config.batch_size, rng), steps))
    prompts = embed_prompts(encoder, task.data)
    teacher = ask_teacher(encoder, train, plan, lone=config.anchor, paired=0.0)
    context = context_of(encoder, prompts, teacher, job)
    blocks = site_blocks(train, plan, context, (config.shift_pixels, rng), row)
    if task.exchange is not None:
        seed = derive_seed(task.seed, "public")
        public = public_parts(task.exchange, encoder, config.batch_size, row, seed)
        blocks = ([*own, Block(*next(public))] for own in blocks)
    return Learner(
        plan=blocks,
        steps=steps,
        schedule=schedule_of(config, total=job.rounds * steps, before=(task.round - 1) * steps),
        towers=task.data.towers,
        rank=task.rank,
    )


def train_local(
    encoder: DualEncoder, sites: Sequence[tuple[SiteData, int]], job: JobConfig
) -> list[SharedAdapter | TrainingError]:
    """Train an adapter per site on its records alone: both factors, steps as in the federation.

    There is no received model to be anchored to: a lone tower learns from its labels only.
    Towers that the site does not have keep B = 0, which is the base.

    Args:
        encoder: The base.
        sites: Records and seed of every site; all train in one cohort.
        job: Rounds, steps, learning rate as in the federation.

    Returns:
        Per site its adapter, or why there is none; as ``train_shared``.

    Raises:
        TrainingError: ``device-lost``: it is no site's fault, and all of them can be trained
            elsewhere.
    """
    found = in_halves(lambda some: _train_locals(encoder, some, job), sites)
    for result in found:
        if isinstance(result, TrainingError) and result.reason == DEVICE_LOST:
            raise result
    return found


def _train_locals(
    encoder: DualEncoder, sites: Sequence[tuple[SiteData, int]], job: JobConfig
) -> list[SharedAdapter | TrainingError]:
    config = job.train
    encoder.use(AdapterView())  # where a fresh adapter is, too
    learners: list[Learner] = []
    starts: list[SharedAdapter] = []
    results: list[SharedAdapter | TrainingError | None] = []
    for data, seed in sites:
        try:
            stream = lone_stream(encoder, data, job, seed, row=len(learners))
        except TrainingError as error:
            results.append(error)
            continue
        steps = job.rounds * stream.steps
        plan = ([block] for block in stream.blocks)
        learners.append(Learner(plan, steps, schedule_of(config, total=steps), data.towers))
        starts.append(fresh_adapter(encoder.layout, seed))
        results.append(None)
    if learners:
        stack = encoder.new_stack(len(learners))
        for row, start in enumerate(starts):
            stack.put(row, start.factors)
        encoder.use_stack(stack, AdapterView())
        fitted = fit(encoder, stack, learners, ("A", "B"), config)
        found = iter(
            result if isinstance(result, TrainingError) else SharedAdapter(stack.read(row))
            for row, result in enumerate(fitted)
        )
        results = [next(found) if result is None else result for result in results]
        encoder.use(AdapterView())
    return [result for result in results if result is not None]


@dataclass(frozen=True)
class Stream:
    """One site's batches for ever, outside a federation.

    Attributes:
        blocks: Batches with the losses that fit them.
        steps: Optimiser steps that make a round.
        size: Training records.
    """

    blocks: Iterator[Block]
    steps: int
    size: int


def lone_stream(
    encoder: DualEncoder, data: SiteData, job: JobConfig, seed: int, row: int = 0
) -> Stream:
    """Return the batches of a site that learns without a received model; the base is in use.

    Raises:
        TrainingError: If there is nothing to learn from.
    """
    train = check_learnable(encoder, data)
    keep_prefixes(encoder, train, job, training=True)
    rng = np.random.default_rng(seed)
    # Prompts stay where the base puts them: embedded anew as training goes on, with nobody else
    # to hold the text tower, texts chase their own prompts (AUROC of the archive .68 to .62).
    prompts = embed_prompts(encoder, data)
    teacher = start_as_teacher(encoder, train, prompts, job.train)
    batches = draw_batches(train, job.train.batch_size, rng)
    context = context_of(encoder, prompts, teacher, job)
    shift = (job.train.shift_pixels, rng)
    blocks = (found[0] for found in site_blocks(train, batches, context, shift, row))
    return Stream(blocks, steps_of(train, job.train), train.everything.size)


def context_of(
    encoder: DualEncoder, prompts: PromptSet | None, teacher: Teacher | None, job: JobConfig
) -> LossContext:
    """Return what a site's losses need beside its batches."""
    return LossContext(prompts, teacher, encoder.logit_scale, job.train.label_similarity)


def site_blocks(
    train: PreparedSplit,
    batches: Iterable[Batch],
    context: LossContext,
    shift: tuple[int, np.random.Generator],
    row: int,
) -> Iterator[list[Block]]:
    """Yield the steps of a site that trains one row on its own batches, with shifted pictures."""
    for batch in batches:
        yield [Block(Part(train, batch, row, shift), context)]


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
