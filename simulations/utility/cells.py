"""Training, scoring and keeping of single cells; what is kept is not trained again."""

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from client.evaluation import evaluate_site
from client.training import train_local
from server.aggregation import AGGREGATORS
from shared.adapter import TOWERS, SharedAdapter
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.files import write_atomic
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.results import Metric
from shared.seeding import derive_seed
from simulations.baselines import train_centralised
from simulations.utility.distributed import train_together
from simulations.utility.plan import Cell, Plan
from simulations.utility.training import noise_of, train_federation
from simulations.utility.world import World, open_world

MEASURES: tuple[Metric, ...] = ("r5", "auroc")
"""What is printed; learning rates are chosen by the first one."""


class Score(BaseModel):
    """A cell in numbers; a JSON file.

    Attributes:
        digest: Of the cell's job and records.
        noise: Noise multiplier of a step; ``None`` for references.
        levels: ``levels[site][metric]`` on test splits; empty where the training diverged.
        seconds: Of training and scoring.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    noise: float | None = None
    levels: dict[str, dict[Metric, float]] = {}
    seconds: float

    def mean(self, metric: Metric) -> float | None:
        """Return the mean over sites."""
        found = [site[metric] for site in self.levels.values() if metric in site]
        return statistics.fmean(found) if found else None


def kept(plan: Plan, cell: Cell) -> Score | None:
    """Return the score of a cell that was trained before, if it is of this very plan."""
    path = plan.out / "cells" / f"{cell.name}.json"
    try:
        score = Score.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return score if score.digest == plan.digest(cell) else None


@dataclass
class Laboratory:
    """Trains cells; base and records of the last seed stay loaded.

    Attributes:
        plan: What is measured.
    """

    plan: Plan
    _encoders: dict[str, DualEncoder] = field(default_factory=dict)
    _world: World | None = None

    def carry_out(self, cell: Cell) -> Score:
        """Train, score and keep a cell.

        Raises:
            StorageError: If it cannot be kept.
        """
        began = time.monotonic()
        job = self.plan.job_of(cell)
        encoder, world = self._base(job), self._records(cell.seed)
        views, noise = self._views(cell, job, encoder, world)
        score = Score(
            digest=self.plan.digest(cell),
            noise=noise,
            levels=_levels(encoder, world, views, job),
            seconds=round(time.monotonic() - began, 2),
        )
        content = (score.model_dump_json(indent=1) + "\n").encode()
        write_atomic(self.plan.out / "cells" / f"{cell.name}.json", content)
        return score

    def _views(
        self, cell: Cell, job: JobConfig, encoder: DualEncoder, world: World
    ) -> tuple[dict[str, AdapterView], float | None]:
        """Return every site's model after the training, and the noise multiplier."""
        sites = world.sites
        if cell.row == "base":
            return dict.fromkeys(sites, AdapterView()), None
        if cell.row == "local":
            seeds = [(data, derive_seed(job.seed, "local", name)) for name, data in sites.items()]
            found = train_local(encoder, seeds, job)
            return {n: _view(adapter) for n, adapter in zip(sites, found, strict=True)}, None
        if cell.row == "centralised":
            seed = derive_seed(job.seed, "centralised")
            adapter = train_centralised(encoder, list(sites.values()), job, seed)
            return dict.fromkeys(sites, AdapterView(adapter)), None
        noise = self._noise(cell.epsilon, job, _entries(encoder, job))
        train = train_together if cell.row.mechanism == "distributed" else train_federation
        shared = train(encoder, sites, world.banks[cell.row.bank], job, noise)
        return dict.fromkeys(sites, AdapterView(shared)), noise

    def _noise(self, epsilon: float, job: JobConfig, entries: int) -> float:
        """Return the noise multiplier; what the accountant found once is kept."""
        path = self.plan.out / "noise.json"
        known: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {}
        private = job.privacy
        steps = job.rounds * int(job.train.steps or 0)
        key = f"{epsilon:g} {private.delta:g} {private.sampling_rate:g} {steps} {entries}"
        if key not in known:
            known[key] = noise_of(epsilon, job, entries)
            write_atomic(path, json.dumps(known, indent=1).encode())
        return known[key]

    def _base(self, job: JobConfig) -> DualEncoder:
        key = job.model.model_dump_json() + job.lora.model_dump_json()
        if key not in self._encoders:
            self._encoders[key] = DualEncoder.load(job.model, job.lora, "cpu")
        return self._encoders[key]

    def _records(self, seed: int) -> World:
        if self._world is None or self._world.seed != seed:
            job = self.plan.job.model_copy(update={"seed": seed})
            self._world = open_world(self.plan.out / "data", job, self._base(job))
        return self._world


def _view(adapter: SharedAdapter | TrainingError) -> AdapterView:
    if isinstance(adapter, TrainingError):
        raise adapter
    return AdapterView(adapter)


def _entries(encoder: DualEncoder, job: JobConfig) -> int:
    """Return how many numbers get noise in a step, at most."""
    rule = AGGREGATORS[job.aggregate.rule](job.aggregate)
    rounds = range(1, job.rounds + 1)
    return max(encoder.layout.entries(rule.trains(number), TOWERS) for number in rounds)


def _levels(
    encoder: DualEncoder, world: World, views: Mapping[str, AdapterView], job: JobConfig
) -> dict[str, dict[Metric, float]]:
    found: dict[str, dict[Metric, float]] = {}
    for name, view in views.items():
        try:
            scored = evaluate_site(encoder, world.sites[name], {"shared": view}, job, {}, seed=0)
        except TrainingError:  # it has diverged, which is a result
            return {}
        metrics = scored.metrics["shared"]
        found[name] = {m: metrics[m].value for m in MEASURES if m in metrics}
    return found
