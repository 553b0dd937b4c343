"""duet: a residual on the frozen, finished shared adapter, distilled from shared to personal.

The pieces: two adapters, one shared and one private (FedDAT, Chen et al., 2024,
https://arxiv.org/abs/2308.12305); the private one fitted after the shared one is final
(FedDPA-F, Yang et al., 2024, https://arxiv.org/abs/2403.19211); feature distillation (CLIP-KD,
https://arxiv.org/abs/2307.12732), one way, so that nothing private reaches what is shared.
"""

from collections.abc import Sequence

import numpy as np

from client.fitting import Learner
from client.personalization.base import Fitted, PersonalTask
from client.personalization.cohort import Anchor, Ground, course_of, fit_side_by_side, learner_of
from client.training import fresh_factors
from shared.adapter import Adapter, Array
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


def duet(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Fitted]:
    """Fit a residual per task: A with orthonormal rows, B = 0, which is the shared model."""
    config = job.personalize
    on = AdapterView(tasks[0].shared)
    encoder.use(on)

    def prepare(task: PersonalTask, row: int) -> tuple[Learner, Adapter]:
        rng = np.random.default_rng(task.seed)
        start: dict[str, Array] = {}
        for layer in encoder.layout.layers:
            if layer.tower in task.data.towers:
                start |= fresh_factors(layer.module, layer.outputs, layer.inputs, config.rank, rng)
        anchor = Anchor(config.distill, config.distill)
        course = course_of(encoder, task, job, rng, anchor)
        return learner_of(course, task, job, row, rng), start

    return fit_side_by_side(encoder, tasks, job, Ground(on, config.rank), prepare)
