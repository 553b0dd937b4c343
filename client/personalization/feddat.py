"""FedDAT: a teacher made of an own and a shared adapter, and a student that it learns from, too.

Chen et al., 2024, https://arxiv.org/abs/2308.12305. Per batch, with every model's own task loss:

    student  shared factors that go on learning     (task + KL(teacher || student)) / 2
    teacher  half own, half shared and frozen       (task + KL(student || teacher)) / 2

Of the teacher only the own half learns; it is the site's personal model. Student and teacher
learn at the same time, each from what the other says of the same pictures before the step. The
paper distils answers with temperature 3; a dual encoder's answers are the similarities within a
batch: image to text and text to image for pairs, and for lone records to each other.

In the paper this is what a round does, and the student is what a site sends. Here it runs once,
on the finished shared adapter, and the student is thrown away: a student that has learned from a
teacher with own parts is a release of what is private. The own half begins at the shared
factors, so that both begin at the shared model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.batches import Batch
from client.encoding import Features, Part, encode
from client.fitting import BETAS, Schedule
from client.losses import batch_losses
from client.personalization.base import Fitted, PersonalTask
from client.personalization.cohort import (
    Anchor,
    Course,
    course_of,
    modules_of,
    schedule_of,
    without_factors,
)
from client.personalization.residual import weighted_sum
from shared.adapter import TOWERS, SharedAdapter, Tower
from shared.config import JobConfig, TrainConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.stack import AdapterStack
from shared.model.view import AdapterView
from shared.objectives.crd import crd
from shared.objectives.relational import relational

_TEMPERATURE = 3.0
_HALF = 0.5
_TINY = 1e-6


def feddat(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Fitted]:
    """Train an own half per task beside a student.

    Returns:
        Per task (own - shared) / 2, of twice the shared rank: what the teacher is more than the
        shared model.
    """
    shared = tasks[0].shared
    encoder.use(AdapterView(shared))
    rows: list[_Row] = []
    results: list[Fitted | None] = []
    for task in tasks:
        rng = np.random.default_rng(task.seed)
        try:
            course = course_of(encoder, task, job, rng, Anchor(job.train.anchor, 0.0))
        except TrainingError as error:
            results.append(error)
        else:
            rows.append(_Row(course, rng, task.data.towers))
            results.append(None)
    if rows:
        found = iter(_train(encoder, rows, shared, job))
        results = [next(found) if result is None else result for result in results]
        encoder.use(AdapterView(shared))
    return [result for result in results if result is not None]


@dataclass(frozen=True)
class _Row:
    """A site: what it learns from, the generator of its shifts, and its towers."""

    course: Course
    rng: np.random.Generator
    towers: tuple[Tower, ...]


def _train(
    encoder: DualEncoder, rows: Sequence[_Row], shared: SharedAdapter, job: JobConfig
) -> list[Fitted]:
    base = without_factors(shared)
    half: dict[Tower, float] = dict.fromkeys(TOWERS, _HALF)
    teacher = _Learning(encoder, AdapterView(base, shared.factors, half), len(rows), half)
    student = _Learning(encoder, AdapterView(base), len(rows), dict.fromkeys(TOWERS, 1.0))
    both = (teacher, student)
    schedule = schedule_of(job)
    for side in both:
        side.start(shared, schedule, job.train)
    contexts = [row.course.context for row in rows]
    losses = []
    for step in range(job.personalize.steps):
        seeds = [int(row.rng.integers(2**63)) for row in rows]  # both see the same pictures
        seen = []
        for side in both:
            parts = [_part(row, n, step, seeds[n], job) for n, row in enumerate(rows)]
            seen.append((side.encode(parts), parts))
        (said, parts), (learned, _) = seen
        total = torch.zeros(len(rows), device=encoder.device)
        for mine, other in ((said, learned), (learned, said)):
            total = total + _HALF * batch_losses(mine, parts, contexts)
            total = total + _HALF * _agreement(mine, other, parts, encoder.logit_scale)
        for side in both:
            side.stack.gradients.zero_()
        total.sum().backward()
        for side in both:
            side.step(step)
        losses.append(total.detach())
    for side in both:
        side.stack.train(())
    sound = torch.stack(losses).isfinite().all(0) & teacher.stack.values.isfinite().all(1)
    return [
        _own(encoder, teacher.stack, n, row, shared) if bool(sound[n]) else _diverged()
        for n, row in enumerate(rows)
    ]


def _part(row: _Row, number: int, step: int, seed: int, job: JobConfig) -> Part:
    shift = (job.train.shift_pixels, np.random.default_rng(seed))
    return Part(row.course.train, row.course.batches[step], number, shift)


def _own(
    encoder: DualEncoder, stack: AdapterStack, number: int, row: _Row, shared: SharedAdapter
) -> Fitted:
    own = stack.read(number, towers=row.towers)
    terms = [(_HALF, own), (-_HALF, shared.factors)]
    return weighted_sum(terms, modules_of(encoder, row.towers))


def _diverged() -> TrainingError:
    return TrainingError(
        "loss-not-finite",
        "the loss or an adapter became infinite or not a number; personalize with a smaller "
        "learning rate, or check the pictures and labels for constant values",
    )


class _Learning:
    """One of the two models of all sites: what is frozen of it, and the rows that learn."""

    def __init__(
        self, encoder: DualEncoder, on: AdapterView, count: int, alpha: dict[Tower, float]
    ) -> None:
        self.stack = encoder.new_stack(count)
        self._encoder, self._on, self._alphas = encoder, on, [alpha] * count

    def start(self, shared: SharedAdapter, schedule: Schedule, config: TrainConfig) -> None:
        """Begin every row at the shared factors."""
        for number in range(len(self.stack)):
            self.stack.put(number, shared.factors)
        self.stack.train(("A", "B"))
        # Adam works number by number: one parameter that holds all rows is every row's own.
        self._parameter = self.stack.values.detach()
        self._parameter.grad = self.stack.gradients
        self._optimizer = torch.optim.AdamW(
            [self._parameter], betas=BETAS, weight_decay=config.weight_decay, fused=True
        )
        self._schedule, self._largest = schedule, config.max_gradient_norm

    def encode(self, parts: Sequence[Part]) -> list[Features]:
        """Return the features that every row gives to its part, with gradients."""
        self._encoder.use_stack(self.stack, self._on, self._alphas)
        return encode(self._encoder, parts, len(self.stack))

    def step(self, step: int) -> None:
        """Clip every row to the largest norm, and descend."""
        norms = torch.linalg.vector_norm(self.stack.gradients, dim=1, keepdim=True)
        self.stack.gradients.mul_((self._largest / (norms + _TINY)).clamp(max=1.0))
        self._optimizer.param_groups[0]["lr"] = self._schedule.rate(step)
        self._optimizer.step()


def _agreement(
    features: Sequence[Features], goal: Sequence[Features], parts: Sequence[Part], scale: float
) -> Tensor:
    """Return how far every part is from agreeing with the goal, (parts,); no gradient to it."""
    return torch.stack(
        [
            disagreement(mine, other, part.batch, scale)
            for mine, other, part in zip(features, goal, parts, strict=True)
        ]
    )


def disagreement(features: Features, goal: Features, batch: Batch, scale: float) -> Tensor:
    """Return the mean KL(goal || features) over the records of a batch, in nats.

    Args:
        features: Of the batch, from the model that learns.
        goal: Of the same records, from the model that it learns from; no gradient.
        batch: Which of them are pairs.
        scale: Inverse temperature of the encoder.
    """
    both = len(batch.pairs)
    total = features.image.new_zeros(())
    if both:
        mine = features.image[:both], features.text[:both]
        wanted = goal.image[:both], goal.text[:both]
        total = total + crd(*mine, *wanted, scale, _TEMPERATURE).sum()
    if len(batch.images):
        total = total + relational(features.image[both:], goal.image[both:], scale).sum()
    if len(batch.texts):
        total = total + relational(features.text[both:], goal.text[both:], scale).sum()
    return total / batch.size
