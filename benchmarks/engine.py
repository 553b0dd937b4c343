"""The other side: Consilia's training of many sites, through its public functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np

from benchmarks.fit import LocalFit
from client.data.records import SiteData
from client.training import SiteTask, TrainedAdapter, train_shared
from shared.adapter import AdapterLayout, Array, SharedAdapter, factor_of
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.memory import keep_freed_memory
from shared.model.encoder import DualEncoder
from simulations.cohorts import cohorts, loads, samples_at_once

Precision = Literal["auto", "float32", "bfloat16"]
"""As in a job; ``auto`` is what a run has that does not say."""

NO_CLIPPING = 1e9


def benchmark_job(
    base: Path,
    fit: LocalFit,
    targets: Sequence[str],
    *,
    precision: Precision = "float32",
    layers: str = "all",
) -> JobConfig:
    """Return a job of one round of FedAvg: no warm-up, no schedule, no clipping of gradients."""
    return JobConfig.model_validate(
        {
            "name": "benchmark",
            "rounds": 1,
            "model": {"base": str(base), "precision": precision},
            "lora": {"rank": 8, "alpha": 16, "targets": list(targets), "layers": layers},
            "train": {
                "batch_size": fit.batch_size,
                "steps": fit.steps,
                "learning_rate": fit.learning_rate,
                "weight_decay": 0.0,
                "warmup_steps": 0,
                "schedule": "constant",
                "max_gradient_norm": NO_CLIPPING,
                "shift_pixels": 0,
            },
            "aggregate": {"rule": "fedavg", "weighting": "equal"},
            "personalize": {"method": "none"},
            "evaluate": {"baselines": [], "gallery_queries": 0, "bootstrap": 100},
        }
    )


class EngineLoop:
    """An encoder, and the cohorts in which the local engine trains sites.

    Attributes:
        encoder: With the job's base.
        job: What is trained.
    """

    def __init__(self, encoder: DualEncoder, job: JobConfig) -> None:
        self.encoder, self.job = encoder, job
        # The model of memory is asked once a run, so once here.
        self._samples = samples_at_once(encoder, job)

    @classmethod
    def load(cls, job: JobConfig, device: str = "cpu") -> Self:
        """Load the job's base; memory is kept as in a run."""
        keep_freed_memory()
        return cls(DualEncoder.load(job.model, job.lora, device=device), job)

    def with_fit(self, fit: LocalFit) -> "EngineLoop":
        """Return the same encoder with another batch size, or other steps."""
        changes = {
            "batch_size": fit.batch_size,
            "steps": fit.steps,
            "learning_rate": fit.learning_rate,
        }
        train = self.job.train.model_copy(update=changes)
        return EngineLoop(self.encoder, self.job.model_copy(update={"train": train}))

    def train_round(self, sites: Sequence[SiteData], start: SharedAdapter) -> list[TrainedAdapter]:
        """Train all sites of a round, in the cohorts that a run would form.

        Raises:
            TrainingError: If a site cannot be trained.
        """
        tasks = {
            data.name: SiteTask(data=data, start=start, factors=("A", "B"), seed=seed, round=1)
            for seed, data in enumerate(sites)
        }
        load = loads({data.name: data for data in sites}, self.job)
        results: list[TrainedAdapter] = []
        for names in cohorts(list(tasks), load, self._samples):
            found = train_shared(self.encoder, [tasks[name] for name in names], self.job)
            for result in found:
                if isinstance(result, TrainingError):
                    raise result
                results.append(result)
        return results


def random_start(layout: AdapterLayout, *, seed: int = 0, largest: float = 0.0) -> SharedAdapter:
    """Return an adapter with random A, and B = 0 or uniform up to ``largest``."""
    rng = np.random.default_rng(seed)
    factors: dict[str, Array] = {}
    for name in layout.names():
        shape = layout.shape_of(name)
        reach = largest if factor_of(name) == "B" else 1 / np.sqrt(shape[1])
        factors[name] = rng.uniform(-reach, reach, shape).astype(np.float32)
    return SharedAdapter(factors)
