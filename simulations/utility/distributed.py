"""One noised sum of all sites per step, as jobs with ``privacy.mode = "distributed"`` have it.

What a site gives and what the server makes of the sum is the code that sites and servers run; only
the way between them is left out, and the masks, which cancel in the sum and change no bit of it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client.data.records import SiteData
from client.patient_steps import PatientSteps, steps_of
from client.private_training import NoisedSum, give_to_the_sum, step_sum
from client.proxy import ProxySet
from client.training import SiteTask
from server.aggregation import AGGREGATORS
from shared.adapter import TOWERS, AdapterUpdate, SharedAdapter
from shared.config import JobConfig
from shared.distributed_noise import grid_at, scale_of
from shared.model.encoder import DualEncoder
from shared.privacy.noise import operating_system
from shared.security.secagg.vector import SUM_OF_SITES

_WITHOUT_NOISE = 2.0**20
"""Steps per unit of a sum that gets no noise."""


def train_together(
    encoder: DualEncoder,
    sites: Mapping[str, SiteData],
    public: ProxySet,
    job: JobConfig,
    noise: float,
) -> SharedAdapter:
    """Train on one sum per round over all sites.

    Args:
        encoder: The base.
        sites: Their records; all have both towers.
        public: The public pairs.
        job: The row's.
        noise: Noise multiplier of the whole sum, by the job's epsilon; 0 clips only.
    """
    rule, layout = AGGREGATORS[job.aggregate.rule](job.aggregate), encoder.layout
    shared = rule.start(layout, job.seed)
    for number in range(1, job.rounds + 1):
        shared = rule.open_round(shared, layout, number, job.seed)
        factors = rule.trains(number)
        scale = scale_of(job, layout, factors, len(sites)) if noise else _WITHOUT_NOISE
        given = []
        for data in sites.values():
            patients = len(np.unique(data.splits["train"].patients))
            steps = steps_of(job.privacy, patients, job.privacy.clip_norm, noise, public)
            task = SiteTask(data, shared, factors, job.seed, number)
            if noise:
                grid = grid_at(scale, job, layout, factors, len(sites))
                given.append(give_to_the_sum(encoder, task, job, steps, grid))
            else:
                given.append(_without_noise(encoder, task, job, steps))
        weights = dict.fromkeys(TOWERS, sum(each.expected for each in given))
        update = AdapterUpdate(SUM_OF_SITES, weights, summed(given), scale, {})
        shared = rule.aggregate(shared, layout, [update])
    return shared


def summed(given: list[NoisedSum]) -> dict[str, NDArray[np.uint32]]:
    """Return the sum mod 2**32 by factor: what is left of masked vectors once masks cancel."""
    total = {name: np.zeros_like(steps) for name, steps in given[0].steps.items()}
    for each in given:
        for name, steps in each.steps.items():
            total[name] += steps
    return total


def _without_noise(
    encoder: DualEncoder, task: SiteTask, job: JobConfig, steps: PatientSteps
) -> NoisedSum:
    total = step_sum(encoder, task, job, steps, operating_system)
    whole = {name: np.rint(-values * _WITHOUT_NOISE) for name, values in total.items()}
    sent = {name: values.astype(np.int64).astype(np.uint32) for name, values in whole.items()}
    return NoisedSum(sent, max(1, round(steps.expected)))
