"""Fitting the own adapters of many sites side by side; see ``client.fitting``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from client.batches import Batch, PreparedSplit, draw_batches
from client.fitting import Learner, Schedule, fit
from client.losses import LossContext, ask_teacher, embed_prompts
from client.personalization.base import Fitted, PersonalTask
from client.prefix_cache import keep_prefixes
from client.training import check_learnable, context_of, site_blocks
from shared.adapter import Adapter, SharedAdapter, Tower
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

Prepare = Callable[[PersonalTask, int], tuple[Learner, Adapter]]
"""What trains a row of the stack, and the factors that the row starts from."""


@dataclass(frozen=True)
class Anchor:
    """How much a site is held to the shared model: lone records, and records with both sides."""

    lone: float
    paired: float


@dataclass(frozen=True)
class Ground:
    """What all sites of a cohort learn on.

    Attributes:
        on: The function that every row is added to.
        rank: Of all rows.
        proximal: mu / 2 times the squared distance to a row's start.
    """

    on: AdapterView
    rank: int
    proximal: float = 0.0


def fit_side_by_side(
    encoder: DualEncoder,
    tasks: Sequence[PersonalTask],
    job: JobConfig,
    ground: Ground,
    prepare: Prepare,
) -> list[Fitted]:
    """Train one row per task with both factors.

    Args:
        encoder: With the view in use under which ``prepare`` asks teachers.
        tasks: On one shared adapter.
        job: Batches, clipping, weight decay, and the memory for prefixes.
        ground: What all rows have in common.
        prepare: Learner and start of a task, given its row.

    Returns:
        Per task the trained factors of its towers, or why there are none.
    """
    rows: list[tuple[Learner, Adapter]] = []
    results: list[Fitted | None] = []
    for task in tasks:
        try:
            rows.append(prepare(task, len(rows)))
        except TrainingError as error:
            results.append(error)
        else:
            results.append(None)
    if rows:
        stack = encoder.new_stack(len(rows), ground.rank)
        for row, (_, start) in enumerate(rows):
            stack.put(row, start)
        encoder.use_stack(stack, ground.on)
        config = job.train.model_copy(update={"proximal": ground.proximal})
        fitted = fit(encoder, stack, [learner for learner, _ in rows], ("A", "B"), config)
        found = iter(
            result
            if isinstance(result, TrainingError)
            else stack.read(row, towers=rows[row][0].towers)
            for row, result in enumerate(fitted)
        )
        results = [next(found) if result is None else result for result in results]
        encoder.use(ground.on)
    return [result for result in results if result is not None]


@dataclass(frozen=True)
class Course:
    """What a site learns from: its training split, the batches of every step, their losses."""

    train: PreparedSplit
    batches: Sequence[Batch]
    context: LossContext


def course_of(
    encoder: DualEncoder,
    task: PersonalTask,
    job: JobConfig,
    rng: np.random.Generator,
    anchor: Anchor,
) -> Course:
    """Draw a site's batches; the shared model, which is in use, embeds prompts and teaches.

    Raises:
        TrainingError: If there is nothing to learn from.
    """
    train = check_learnable(encoder, task.data)
    keep_prefixes(encoder, train, job, training=True)
    prompts = embed_prompts(encoder, task.data)
    drawn = draw_batches(train, job.train.batch_size, rng)
    batches = list(islice(drawn, job.personalize.steps))
    teacher = ask_teacher(encoder, train, batches, lone=anchor.lone, paired=anchor.paired)
    return Course(train, batches, context_of(encoder, prompts, teacher, job))


def learner_of(
    course: Course, task: PersonalTask, job: JobConfig, row: int, rng: np.random.Generator
) -> Learner:
    """Return what trains a site's row on its own records."""
    shift = (job.train.shift_pixels, rng)
    blocks = site_blocks(course.train, course.batches, course.context, shift, row)
    return Learner(blocks, job.personalize.steps, schedule_of(job), task.data.towers)


def schedule_of(job: JobConfig) -> Schedule:
    """Return the learning rate by step of a personal fit, which has a run to itself."""
    config = job.personalize
    total = config.steps if job.train.schedule == "cosine" else 0
    return Schedule(config.learning_rate, job.train.warmup_steps, total)


def without_factors(shared: SharedAdapter) -> SharedAdapter:
    """Return the base with what was folded into it: what the shared factors are added to."""
    return SharedAdapter({}, shared.residual, shared.folds)


def modules_of(encoder: DualEncoder, towers: Sequence[Tower]) -> list[str]:
    """Return the adapted layers of some towers."""
    return [layer.module for layer in encoder.layout.layers if layer.tower in towers]
