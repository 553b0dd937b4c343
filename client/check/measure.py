"""One real step of training on a site's own records, timed; nothing of it is kept or sent.

It is the agent's own code for a round, with the job's settings and fewer steps. The first step
also pays for what a process does once; a few short rounds tell what a step costs, and what a
round costs beside its steps.
"""

import resource
import time
from dataclasses import dataclass
from statistics import median
from typing import Final

import torch

from client.batches import prepare, steps_of
from client.compute import settle_process
from client.data.records import SiteData
from client.training import fresh_adapter
from client.work import Trained, Work, train_together
from shared.adapter import FACTORS, Factor
from shared.config import JobConfig
from shared.messages import Request
from shared.model.encoder import DualEncoder
from shared.seeding import derive_seed

_MORE_STEPS: Final = 4
_REPEATS: Final = 3
_PATIENCE_SECONDS: Final = 20.0
"""Where the first step takes longer, it is the only one."""


@dataclass(frozen=True)
class Measured:
    """What training costs here.

    Attributes:
        steps: Optimiser steps that a round of the job takes with these records.
        first_seconds: Of the first step, with all that a process does once.
        step_seconds: Of a step.
        round_seconds: Of a round beside its steps: validation, merging the adapter, a teacher.
        loss: Of the first step, nats; none where the job keeps it from everyone.
        memory_bytes: Peak resident memory of this process.
        device_bytes: Peak memory on the GPU; ``None`` without one.
        rough: Whether there was time for one step only.
    """

    steps: int
    first_seconds: float
    step_seconds: float
    round_seconds: float
    loss: float | None
    memory_bytes: int
    device_bytes: int | None = None
    rough: bool = False

    @property
    def work_seconds(self) -> float:
        """Seconds that the site works in a round."""
        return self.round_seconds + self.steps * self.step_seconds


def measure(encoder: DualEncoder, data: SiteData, job: JobConfig, threads: int) -> Measured:
    """Train a step, and a few more if there is time.

    Args:
        encoder: The job's.
        data: The site's records.
        job: The job as the site sees it.
        threads: For numerical work, as the agent has.

    Raises:
        TrainingError: If the site cannot train on these records, or they do not fit into memory.
    """
    settle_process(threads)
    on_device = encoder.device.type == "cuda"
    if on_device:
        torch.cuda.reset_peak_memory_stats(encoder.device)
    first_seconds, trained = _train(encoder, data, job, 1)
    rough = first_seconds > _PATIENCE_SECONDS
    step, beside = (first_seconds, 0.0) if rough else _step_and_beside(encoder, data, job)
    return Measured(
        steps=steps_of(prepare(encoder, data, "train"), job.train),
        first_seconds=first_seconds,
        step_seconds=step,
        round_seconds=beside,
        loss=trained.adapter.loss,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_bytes=torch.cuda.max_memory_reserved(encoder.device) if on_device else None,
        rough=rough,
    )


def _step_and_beside(encoder: DualEncoder, data: SiteData, job: JobConfig) -> tuple[float, float]:
    """Return the seconds of a step, and of a round beside its steps: medians, if there is time."""
    begun = time.monotonic()
    ones: list[float] = []
    mores: list[float] = []
    while len(ones) < _REPEATS and time.monotonic() - begun < _PATIENCE_SECONDS / 2:
        ones.append(_train(encoder, data, job, 1)[0])
        mores.append(_train(encoder, data, job, _MORE_STEPS)[0])
    one, more = median(ones), median(mores)
    step = (more - one) / (_MORE_STEPS - 1)
    if step <= 0:  # so little that other things decide
        step = more / _MORE_STEPS
    return step, max(0.0, one - step)


def _train(
    encoder: DualEncoder, data: SiteData, job: JobConfig, steps: int
) -> tuple[float, Trained]:
    """Return the seconds that a round of so many steps takes, and what came of it."""
    short = job.model_copy(
        update={"train": job.train.model_copy(update={"steps": steps, "epochs": None})}
    )
    seed = derive_seed(job.seed, "check", data.name)
    factors: tuple[Factor, ...] = FACTORS
    request = Request(
        kind="train",
        run="check",
        round=1,
        site=data.name,
        base_sha256=encoder.base_sha256,
        job_sha256=short.digest(),
        factors=factors,
        weights=dict.fromkeys(data.towers, 1),
        seed=seed,
        job=short,
    )
    # Made anew, so that merging it is paid for as in a round.
    start = fresh_adapter(encoder.layout, seed)
    begun = time.monotonic()
    work = Work(request, "", None, encoder, data, start, begun)
    (result,) = train_together([work])
    seconds = time.monotonic() - begun
    if isinstance(result, Trained):
        return seconds, result
    raise result
