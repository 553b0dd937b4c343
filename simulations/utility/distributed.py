"""One noised sum of all sites per step: what secure aggregation makes possible, played here.

In every step each site adds up the clipped gradients of the patients it drew, adds its share of
the noise, and gives whole numbers mod 2**32 to a sum. Of that step nothing but the sum is known to
anybody, which is what secure aggregation is for: masks cancel in the sum, so that they change no
bit of it, and are left out here. The sum has as much noise as one site adds to its own, so it is
accounted as one step over the patients of all sites (``shared.privacy.mechanism``).

The whole step is one sum, and only one: a site that took several steps on a share of the noise,
and sent what became of them, would have released more than is accounted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.bank import open_bank
from client.batches import Batch, prepare
from client.data.records import SiteData
from client.patient_steps import PatientSteps, patients_of, steps_of, units_of_a_step
from client.prefix_cache import keep_prefixes
from client.private_training import (
    IN_SINGLE_PRECISION,
    FactorOptimizer,
    PatientGradients,
    patient_sum,
)
from client.proxy import ProxySet
from client.training import SiteTask, schedule_of
from server.aggregation import AGGREGATORS
from shared.adapter import SharedAdapter
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.privacy.mechanism import Grid, distributed_grid, noised_steps

MISSING = 1
"""Sites that may drop out of a step or be curious: the others' noise is enough without them."""

_ROWS = 32


@dataclass(frozen=True)
class _Party:
    """One site in a round."""

    gradients: PatientGradients
    patients: list[Batch]
    steps: PatientSteps


def train_together(
    encoder: DualEncoder,
    sites: Mapping[str, SiteData],
    public: ProxySet,
    job: JobConfig,
    noise: float,
) -> SharedAdapter:
    """Train on one noised sum per step over all sites, as many steps as a site takes otherwise.

    Args:
        encoder: The base.
        sites: Their records; all have both towers.
        public: The public pairs.
        job: The row's.
        noise: Noise multiplier of the whole sum; 0 clips only.
    """
    rule, layout = AGGREGATORS[job.aggregate.rule](job.aggregate), encoder.layout
    shared = rule.start(layout, job.seed)
    for number in range(1, job.rounds + 1):
        shared = rule.open_round(shared, layout, number, job.seed)
        parties = [
            _party(encoder, SiteTask(data, shared, rule.trains(number), job.seed, number), public,
                   job, noise)
            for data in sites.values()
        ]  # fmt: skip
        try:
            _descend(parties, job, number)
            trained = parties[0].gradients.factors()
        finally:
            parties[0].gradients.close()
        shared = SharedAdapter(
            {**shared.factors, **trained}, shared.residual, shared.folds, shared.state
        )
    return shared


def _party(
    encoder: DualEncoder, task: SiteTask, public: ProxySet, job: JobConfig, noise: float
) -> _Party:
    train = prepare(encoder, task.data, "train")
    keep_prefixes(encoder, train, job, training=True)
    keep_prefixes(encoder, prepare(encoder, public.data, "train"), job, training=True)
    encoder.use(AdapterView(task.start))
    bank = open_bank(encoder, task.data, public, job.train)
    shift = (job.train.shift_pixels, np.random.default_rng())
    gradients = PatientGradients(encoder, train, bank, task, _ROWS, shift)
    patients = patients_of(train)
    steps = steps_of(job.privacy, len(patients), job.privacy.clip_norm, noise, public)
    return _Party(gradients, patients, steps)


def _descend(parties: list[_Party], job: JobConfig, round_number: int) -> None:
    count = int(job.train.steps or 0)
    values = parties[0].gradients.values
    for party in parties:
        party.gradients.values = values  # the released factors, the same for all
    schedule = schedule_of(job.train, total=job.rounds * count, before=(round_number - 1) * count)
    optimizer = FactorOptimizer(values, schedule, job)
    expected = sum(party.steps.expected for party in parties)
    grid = _grid(parties, values)
    for step in range(count):
        optimizer.step(step, noised_sum(parties, grid) / expected)


def noised_sum(parties: list[_Party], grid: Grid | None) -> NDArray[np.float64]:
    """Return the sum of one step over all parties, each with its share of the noise.

    Args:
        parties: All at the same factors.
        grid: Common to all; ``None`` for no noise.
    """
    sums = [_own_sum(party) for party in parties]
    if grid is None:
        return np.asarray(np.sum(sums, axis=0), np.float64)
    total = unmasked([noised_steps(own, grid) for own in sums])
    return (total + 0.5 * len(parties)) / grid.per_unit  # noise in whole steps is rounded down


def unmasked(sent: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return the sum mod 2**32, in steps: what is left of masked vectors once masks cancel."""
    total = np.zeros(len(sent[0]), np.uint32)
    for steps in sent:
        total += steps.astype(np.uint32)
    return total.view(np.int32).astype(np.float64)


def _own_sum(party: _Party) -> NDArray[np.float64]:
    party.gradients.use()
    units = units_of_a_step(party.patients, party.steps)
    return patient_sum(party.gradients, units, party.steps.clip)


def _grid(parties: list[_Party], values: Tensor) -> Grid | None:
    steps = parties[0].steps
    if not steps.noise:
        return None
    return distributed_grid(
        len(values),
        steps.sensitivity * steps.clip * IN_SINGLE_PRECISION,
        steps.noise,
        parties=len(parties),
        missing=MISSING,
    )
