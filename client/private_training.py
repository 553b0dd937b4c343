"""DP-SGD at the site: what a round changes is noise plus what each patient may say at most.

Abadi et al., 2016, https://arxiv.org/abs/1607.00133, with patients as the unit. In every step each
patient is drawn by a coin of its own; the gradient of all of a patient's records is cut to one
norm; noise for that norm is added to the sum. Only the noised sum moves the factors, so whatever is
made of them afterwards, by the optimiser, the coordinator or anybody, costs no more.

Gradients per patient come from the stack that trains sites side by side: every row of it is a copy
of the same factors, and belongs to one patient. Rows never touch one another (``client.bank`` sees
to the losses), so each row's gradient is that patient's, exactly.

With groups a row belongs to a group, into which each of the drawn patients comes by a draw of its
own (https://arxiv.org/abs/2604.26467, with the noise doubled). One patient more changes the
gradient of one group, from somewhere within the norm to anywhere within it: by twice the norm.

Who is drawn, how pictures are moved and the noise come from the operating system. A round that is
trained anew is another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.bank import Bank, grouped_loss, open_bank, separable_loss
from client.batches import Batch, PreparedSplit, prepare
from client.encoding import Part, encode
from client.fitting import BETAS, Schedule
from client.patient_steps import PatientSteps, patients_of, units_of_a_step
from client.prefix_cache import keep_prefixes
from client.progress import step_done
from client.training import SiteTask, TrainedAdapter, schedule_of
from shared.adapter import SharedAdapter
from shared.config import JobConfig
from shared.errors import RefusedError, TrainingError
from shared.model.encoder import DualEncoder
from shared.model.stack import AdapterStack
from shared.model.view import AdapterView
from shared.privacy.mechanism import (
    IN_SINGLE_PRECISION,
    Grid,
    clipped_sum,
    local_grid,
    noised,
    noised_steps,
)
from shared.privacy.noise import Draw, operating_system

_PATIENTS_AT_ONCE = 32
_RECORDS_AT_ONCE = 64

_VECTOR = "trained"

Patient = TypeVar("Patient")
Number = TypeVar("Number", np.float64, np.uint32)
_Patient_contra = TypeVar("_Patient_contra", contravariant=True)


def train_privately(
    encoder: DualEncoder,
    task: SiteTask,
    job: JobConfig,
    steps: PatientSteps,
    draw: Draw = operating_system,
) -> TrainedAdapter:
    """Train the phase's factors of one site, in as many steps as the job says.

    Args:
        encoder: In single precision; left without a stack.
        task: What the site starts from and which factors it trains.
        job: Learning rate, number of steps, whether pictures are moved.
        steps: Clipping, noise and sampling.
        draw: Where random bytes come from; of any other source than the operating system nothing
            may be claimed.

    Returns:
        The trained factors. There is no loss and no norm: they would leave without noise.

    Raises:
        RefusedError: ``privacy-plan`` if the encoder is not in single precision, or the public
            set has pictures of the site's own.
        TrainingError: ``no-training-data``, or ``abandoned``.
    """
    gradients, patients = _at_the_start(encoder, task, job, steps, draw)
    try:
        _descend(gradients, patients, task, job, steps, draw)
        return TrainedAdapter(gradients.factors(), None, int(job.train.steps or 0), {}, {})
    finally:
        gradients.close()


@dataclass(frozen=True)
class NoisedSum:
    """What a site gives to the sum of a step; see ``give_to_the_sum``.

    Attributes:
        steps: Minus the noised sum of clipped gradients by factor, in whole steps mod 2**32.
        expected: Patients, or groups, that a step of the site is taken to have; not its exact
            number.
    """

    steps: dict[str, NDArray[np.uint32]]
    expected: int


def give_to_the_sum(
    encoder: DualEncoder,
    task: SiteTask,
    job: JobConfig,
    steps: PatientSteps,
    grid: Grid,
    draw: Draw = operating_system,
) -> NoisedSum:
    """Return one step's sum of clipped gradients, with the site's share of the noise.

    Nothing is trained here: what becomes of the sum of all sites is the coordinator's to decide.

    Args:
        encoder: In single precision; left without a stack.
        task: What the gradients are at, and of which factors.
        job: Whether pictures are moved.
        steps: Clipping and sampling.
        grid: How fine, and how much noise (``shared.distributed_noise.grid_at``); it may leave
            through secure aggregation only.
        draw: Where random bytes come from; of any other source than the operating system nothing
            may be claimed.

    Raises:
        RefusedError: As ``train_privately``.
        TrainingError: As ``train_privately``.
    """
    gradients, patients = _at_the_start(encoder, task, job, steps, draw)
    try:
        share = noised_share(gradients, patients, steps, grid, draw)
        step_done(1, 1)
        return NoisedSum(
            gradients.by_factor((-share).astype(np.uint32)), max(1, round(steps.expected))
        )
    finally:
        gradients.close()


def step_sum(
    encoder: DualEncoder, task: SiteTask, job: JobConfig, steps: PatientSteps, draw: Draw
) -> dict[str, NDArray[np.float64]]:
    """Return the sum of the clipped gradients of those drawn, by factor; it must not leave."""
    gradients, patients = _at_the_start(encoder, task, job, steps, draw)
    try:
        total = patient_sum(gradients, units_of_a_step(patients, steps, draw), steps.clip)
        return gradients.by_factor(total)
    finally:
        gradients.close()


def _at_the_start(
    encoder: DualEncoder, task: SiteTask, job: JobConfig, steps: PatientSteps, draw: Draw
) -> tuple["PatientGradients", list[Batch]]:
    """Return the gradients at what the site received, and its patients."""
    if encoder.precision != torch.float32:
        raise RefusedError("privacy-plan", "the encoder is not in single precision")
    train = prepare(encoder, task.data, "train")
    patients = patients_of(train)
    if not patients:
        raise TrainingError("no-training-data", f"site {task.data.name}: no training records")
    keep_prefixes(encoder, train, job, training=True)
    keep_prefixes(encoder, prepare(encoder, steps.public.data, "train"), job, training=True)
    encoder.use(AdapterView(task.start))
    bank = open_bank(encoder, task.data, steps.public, job.train, groups=bool(steps.groups))
    rows = min(_PATIENTS_AT_ONCE, steps.groups or len(patients))
    return PatientGradients(encoder, train, bank, task, rows, _shift(job, draw)), patients


class PatientGradients:
    """Gradients of single patients, all at the same factors.

    Attributes:
        values: (d,) the factors that are trained, on the encoder's device; several sites may
            have the same.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        train: PreparedSplit,
        bank: Bank,
        task: SiteTask,
        rows: int,
        shift: tuple[int, np.random.Generator],
    ) -> None:
        """Put the stack in use; ``close`` takes it away.

        Args:
            encoder: The base.
            train: The site's training split.
            bank: What records are compared with.
            task: What the site starts from, and which factors it trains.
            rows: Patients whose gradients are computed at once.
            shift: Pixels by which pictures are moved at most, and the generator for it.
        """
        self._encoder, self._train, self._bank, self._shift = encoder, train, bank, shift
        self._factors, self._towers = task.factors, task.data.towers
        self._stack: AdapterStack = encoder.new_stack(rows)
        self._stack.put(0, task.start.factors)
        self._stack.values.copy_(self._stack.values[0].clone().expand_as(self._stack.values))
        slices = self._stack.slices(task.factors, task.data.towers)
        self._columns = [columns for _, columns in slices]
        self.values = torch.cat([self._stack.values[0, each] for each in self._columns])
        start = task.start
        self._below = AdapterView(SharedAdapter({}, start.residual, start.folds))
        self.use()

    def use(self) -> None:
        """Put the stack in use again, if the encoder served another site since."""
        self._encoder.use_stack(self._stack, self._below)
        self._stack.train(self._factors)

    def of(self, patients: Sequence[Batch]) -> Iterator[NDArray[np.float32]]:
        """Yield the gradient of every patient's records, (d,), a few computed at once."""
        start = 0
        for each in self._columns:
            width = each.stop - each.start
            self._stack.values[:, each] = self.values[start : start + width]
            start += width
        for chunk in _chunks(patients, len(self._stack)):
            yield from self._together(chunk)

    def factors(self) -> dict[str, NDArray[np.float32]]:
        """Return the trained factors of the site's towers."""
        start = 0
        for each in self._columns:
            width = each.stop - each.start
            self._stack.values[0, each] = self.values[start : start + width]
            start += width
        return self._stack.read(0, self._factors, self._towers)

    def by_factor(self, vector: NDArray[Number]) -> dict[str, NDArray[Number]]:
        """Return (d,) numbers, in the order of ``values``, by factor."""
        found, start = {}, 0
        for name, values in self._stack.read(0, self._factors, self._towers).items():
            end = start + values.size
            found[name] = vector[start:end].reshape(values.shape)
            start = end
        return found

    def close(self) -> None:
        """Give the encoder back without the stack."""
        self._stack.train(())
        self._encoder.use(AdapterView())

    def _together(self, patients: Sequence[Batch]) -> NDArray[np.float32]:
        """Return the gradients of some patients, (patients, d)."""
        parts = [Part(self._train, batch, row, self._shift) for row, batch in enumerate(patients)]
        self._stack.gradients.zero_()
        features = encode(self._encoder, parts, len(self._stack))
        loss = grouped_loss if self._bank.groups else separable_loss
        loss(features, parts, self._bank).backward()
        found = self._stack.gradients[: len(patients)]
        return torch.cat([found[:, each] for each in self._columns], 1).cpu().numpy()


class Gradients(Protocol[_Patient_contra]):
    """Gradients of single patients, whatever a patient is told by; ``PatientGradients`` is it."""

    values: Tensor
    """(d,) what the gradients are of."""

    def of(self, patients: Sequence[_Patient_contra]) -> Iterator[NDArray[np.float32]]:
        """Yield the gradient of every patient, (d,)."""
        ...


def patient_sum(
    gradients: Gradients[Patient], patients: Sequence[Patient], norm: float
) -> NDArray[np.float64]:
    """Return the sum of some patients' gradients, each cut to a norm, (d,); it must not leave.

    A patient whose gradient is not finite is left out.
    """
    total = np.zeros(len(gradients.values))
    for gradient in gradients.of(patients):
        found, _ = clipped_sum([{_VECTOR: gradient}], norm)
        total += found.get(_VECTOR, 0.0)
    return total


def noised_share(
    gradients: Gradients[Patient],
    patients: Sequence[Patient],
    steps: PatientSteps,
    grid: Grid,
    draw: Draw = operating_system,
) -> NDArray[np.int64]:
    """Return a site's part of a step's sum, (d,): of those drawn, with its share of the noise.

    Args:
        gradients: As for ``noised_sums``.
        patients: As there.
        steps: As there; the noise is the grid's.
        grid: How fine, and how much noise.
        draw: As there.
    """
    total = patient_sum(gradients, units_of_a_step(patients, steps, draw), steps.clip)
    return noised_steps(total, grid, draw)


def noised_sums(
    gradients: Gradients[Patient],
    patients: Sequence[Patient],
    steps: PatientSteps,
    count: int,
    draw: Draw = operating_system,
) -> Iterator[NDArray[np.float64]]:
    """Yield what may be known of each step, (d,): the noised sum of those who are drawn.

    All that a round releases is made of these sums, and audits attack them.

    Args:
        gradients: Of every patient, at the values of the moment.
        patients: All of them.
        steps: Clipping, noise and sampling.
        count: How many steps; each is taken, whoever is drawn: nobody at all is a step of noise.
        draw: Where random bytes come from.
    """
    grid = None
    if steps.noise:
        sensitivity = steps.sensitivity * steps.clip * IN_SINGLE_PRECISION
        grid = local_grid(len(gradients.values), sensitivity, steps.noise)
    for _ in range(count):
        total = patient_sum(gradients, units_of_a_step(patients, steps, draw), steps.clip)
        yield total if grid is None else noised(total, grid, draw)


def _descend(
    gradients: PatientGradients,
    patients: Sequence[Batch],
    task: SiteTask,
    job: JobConfig,
    steps: PatientSteps,
    draw: Draw,
) -> None:
    """Take the round's steps, all of them."""
    config, count = job.train, int(job.train.steps or 0)
    schedule = schedule_of(config, total=job.rounds * count, before=(task.round - 1) * count)
    optimizer = FactorOptimizer(gradients.values, schedule, job)
    for step, total in enumerate(noised_sums(gradients, patients, steps, count, draw)):
        optimizer.step(step, total / steps.expected)
        step_done(step + 1, count)


class FactorOptimizer:
    """AdamW, as sites train without noise; it sees the noised mean only."""

    def __init__(self, values: Tensor, schedule: Schedule, job: JobConfig) -> None:
        """Begin a round.

        Args:
            values: (d,) the factors that are trained, changed in place.
            schedule: Of the learning rate.
            job: For weight decay and the pull to where the round began.
        """
        self._values, self._schedule = values, schedule
        self._start, self._pull = values.clone(), job.train.proximal
        self._adam = torch.optim.AdamW([values], betas=BETAS, weight_decay=job.train.weight_decay)

    def step(self, number: int, mean: NDArray[np.float64]) -> None:
        """Move the values by a step, counted from 0."""
        gradient = torch.from_numpy(mean.astype(np.float32)).to(self._values.device)
        self._values.grad = gradient + self._pull * (self._values - self._start)
        self._adam.param_groups[0]["lr"] = self._schedule.rate(number)
        self._adam.step()


def _shift(job: JobConfig, draw: Draw) -> tuple[int, np.random.Generator]:
    """Return how pictures are moved; by a generator that nobody outside can run again.

    With one made from the round's seed the coordinator could tell how every picture is moved, and
    a patient more would move all that come after in another way.
    """
    seed = int.from_bytes(draw(16), "little")
    return job.train.shift_pixels, np.random.default_rng(seed)


def _chunks(patients: Sequence[Batch], most: int) -> Iterator[list[Batch]]:
    """Yield patients that are computed together: few enough, with few enough records."""
    chunk: list[Batch] = []
    records = 0
    for batch in patients:
        if chunk and (len(chunk) == most or records + batch.size > _RECORDS_AT_ONCE):
            yield chunk
            chunk, records = [], 0
        chunk.append(batch)
        records += batch.size
    if chunk:
        yield chunk
