"""Local-only: an adapter that is trained on the base alone and knows nothing of the shared one.

What a site can do without a federation, here as the function of a site that takes part in one.
It is stored as ``own - shared``, so that alpha = 1 is exactly the own function, and alpha between
is the mixture of a local and a global model of APFL (Deng et al., 2020,
https://arxiv.org/abs/2003.13461). It has ``personalize.steps`` steps; rounds x ``train.steps``
give it what the federation had.
"""

from collections.abc import Sequence

import numpy as np

from client.fitting import Learner
from client.personalization.base import Fitted, PersonalTask
from client.personalization.cohort import Ground, fit_side_by_side, modules_of, schedule_of
from client.personalization.residual import weighted_sum
from client.training import fresh_factors, lone_stream
from shared.adapter import TOWERS, Adapter, Array
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


def local(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Fitted]:
    """Train an adapter per task on the base.

    Returns:
        Per task its adapter minus the shared one, in both towers: a tower that the site does not
        have is the base's again.
    """
    config, shared = job.personalize, tasks[0].shared
    encoder.use(AdapterView())

    def prepare(task: PersonalTask, row: int) -> tuple[Learner, Adapter]:
        stream = lone_stream(encoder, task.data, job, task.seed, row)
        plan = ([block] for block in stream.blocks)
        rng = np.random.default_rng(task.seed)
        start: dict[str, Array] = {}
        for layer in encoder.layout.layers:
            start |= fresh_factors(layer.module, layer.outputs, layer.inputs, config.rank, rng)
        return Learner(plan, config.steps, schedule_of(job), task.data.towers), start

    ground = Ground(AdapterView(), config.rank)
    found = fit_side_by_side(encoder, tasks, job, ground, prepare)
    everywhere = modules_of(encoder, TOWERS)
    gone = [(-1.0, shared.factors), (-1.0, shared.residual)]
    return [
        own if isinstance(own, TrainingError) else weighted_sum([(1.0, own), *gone], everywhere)
        for own in found
    ]
