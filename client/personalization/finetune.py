"""Fine-tuned shared: every site goes on training the finished shared adapter on its own records.

Wang et al., 2019, https://arxiv.org/abs/1910.10252; Yu et al., 2020,
https://arxiv.org/abs/2002.04758. Losses and anchor are those of a round. ``ditto`` and
``fedper`` are the same with a pull to the shared adapter, or with fewer layers.
"""

from collections.abc import Collection, Sequence

import numpy as np

from client.fitting import Learner
from client.personalization.base import Fitted, PersonalTask
from client.personalization.cohort import (
    Anchor,
    Ground,
    course_of,
    fit_side_by_side,
    learner_of,
    modules_of,
    without_factors,
)
from client.personalization.residual import weighted_sum
from shared.adapter import TOWERS, Adapter, SharedAdapter, Tower, module_of
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


def finetune(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Fitted]:
    """Train all layers on from the shared adapter."""
    return continue_shared(encoder, tasks, job, modules_of(encoder, TOWERS))


def continue_shared(
    encoder: DualEncoder,
    tasks: Sequence[PersonalTask],
    job: JobConfig,
    layers: Collection[str],
    proximal: float = 0.0,
) -> list[Fitted]:
    """Train some layers' factors on from where the shared adapter is.

    Args:
        encoder: The base.
        tasks: On one shared adapter.
        job: Steps, rates, batches.
        layers: Modules that learn; the others stay as they are shared.
        proximal: mu / 2 times the squared distance to the shared factors.

    Returns:
        Per task B' A' - B A of the layers that learned, of twice the shared rank.
    """
    shared = tasks[0].shared
    start, still = _parted(shared, layers)
    encoder.use(AdapterView(shared))

    def prepare(task: PersonalTask, row: int) -> tuple[Learner, Adapter]:
        rng = np.random.default_rng(task.seed)
        course = course_of(encoder, task, job, rng, Anchor(job.train.anchor, 0.0))
        # Layers whose A and B are both zero get no gradient, and stay zero.
        return learner_of(course, task, job, row, rng), start

    whole: dict[Tower, float] = dict.fromkeys(TOWERS, 1.0)
    on = AdapterView(without_factors(shared), still, whole)
    ground = Ground(on, encoder.layout.rank, proximal)
    found = fit_side_by_side(encoder, tasks, job, ground, prepare)
    return [
        own
        if isinstance(own, TrainingError)
        else weighted_sum([(1.0, own), (-1.0, start)], _learned(encoder, task, layers))
        for task, own in zip(tasks, found, strict=True)
    ]


def _parted(shared: SharedAdapter, layers: Collection[str]) -> tuple[Adapter, Adapter]:
    """Return the shared factors of some layers, and those of the others."""
    inside = {name: array for name, array in shared.factors.items() if module_of(name) in layers}
    rest = {name: array for name, array in shared.factors.items() if name not in inside}
    return inside, rest


def _learned(encoder: DualEncoder, task: PersonalTask, layers: Collection[str]) -> list[str]:
    return [module for module in modules_of(encoder, task.data.towers) if module in layers]
