"""Trainings of the table: a site's own training and the server's own rule, without messages.

What a site does and what the server does with it is the code that sites and servers run; only the
way between them is left out, which changes no number beyond the rounding of fixed point.
"""

import math
from collections.abc import Mapping
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from client.data.records import SiteData
from client.patient_steps import steps_of
from client.private_training import train_privately
from client.proxy import ProxySet
from client.training import SiteTask
from server.aggregation import AGGREGATORS
from shared import fixedpoint
from shared.adapter import AdapterUpdate, Array, SharedAdapter
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.privacy.accountant import Spend, noise_for
from shared.privacy.clipping import clip

_WEIGHT: Final = 1
"""Weight of every site: rows with privacy weigh all the same."""


def noise_of(epsilon: float, job: JobConfig, entries: int) -> float:
    """Return the noise multiplier of a training, 0 for an infinite epsilon.

    Args:
        epsilon: Over all steps.
        job: Steps, sampling and delta.
        entries: Numbers that get noise in a step.
    """
    if math.isinf(epsilon):
        return 0.0
    private, steps = job.privacy, job.rounds * int(job.train.steps or 0)
    plan = Spend(sampling=private.sampling_rate, noise=1, steps=steps, entries=entries)
    return noise_for(epsilon, private.delta, plan)


def train_federation(
    encoder: DualEncoder,
    sites: Mapping[str, SiteData],
    public: ProxySet,
    job: JobConfig,
    noise: float,
) -> SharedAdapter:
    """Train with noise at every site; the server averages what they send.

    Args:
        encoder: The base.
        sites: Their records.
        public: The public pairs.
        job: The row's.
        noise: Noise multiplier of a step; 0 clips only.
    """
    rule, layout = AGGREGATORS[job.aggregate.rule](job.aggregate), encoder.layout
    shared = rule.start(layout, job.seed)
    scale = fixedpoint.choose_scale(len(sites), job.aggregate.clip_norm, len(sites))
    for number in range(1, job.rounds + 1):
        shared = rule.open_round(shared, layout, number, job.seed)
        updates = []
        for data in sites.values():
            patients = len(np.unique(data.splits["train"].patients))
            steps = steps_of(job.privacy, patients, job.privacy.clip_norm, noise, public)
            task = SiteTask(data, shared, rule.trains(number), job.seed, number)
            trained = train_privately(encoder, task, job, steps)
            updates.append(_update(data, shared, trained.factors, job, scale))
        shared = rule.aggregate(shared, layout, updates)
    return shared


def _update(
    data: SiteData,
    start: SharedAdapter,
    trained: Mapping[str, Array],
    job: JobConfig,
    scale: float,
) -> AdapterUpdate:
    change = {factor: values - start.factors[factor] for factor, values in trained.items()}
    short, _ = clip(change, job.aggregate.clip_norm)
    sent = fixedpoint.encode(short, lambda _: _WEIGHT, scale)
    delta = cast("Mapping[str, NDArray[np.uint32]]", sent)
    return AdapterUpdate(data.name, dict.fromkeys(data.towers, _WEIGHT), delta, scale, {})
