"""Which runs a comparison needs: (method, rate, seed) to one job each, all else equal.

Every job is read anew from the job file with the method's rule and personalization, the rate and
the seed in place of the file's, so that a rule that cannot run with the file is refused by the
job's own check, and options that the file does not mention are the rule's own defaults. Rounds,
steps a round, batches, data and seeds are the file's for all: a rule that trains one factor a
round takes exactly as many optimiser steps as one that trains both.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.aggregation import AGGREGATORS
from shared.config import COMMAND_LINE, AggregateConfig, JobConfig, parse_job
from shared.errors import ConfigError
from shared.toml_files import read_toml
from simulations.compare.methods import REFERENCES, Method

TUNING_OFFSET = 1000
"""The seed that rates are chosen on is the job's plus this; no compared seed is."""

DEFAULT_FACTORS = (0.5, 1.0, 2.0)
"""Of the job's learning rate, if no grid is given."""


@dataclass(frozen=True)
class Task:
    """One run of a comparison.

    Attributes:
        method: Its row: a method's name, or a reference's.
        rate: Learning rate.
        seed: Of data, starts and batches.
        job: What is run.
        folder: The run directory.
        data: Where the synthetic sites of the seed lie, once for all methods.
        tuning: Whether it only serves to choose the rate; its test splits are not looked at.
    """

    method: str
    rate: float
    seed: int
    job: JobConfig
    folder: Path
    data: Path
    tuning: bool

    @property
    def reference(self) -> bool:
        """Whether it is no federation but what one is compared with."""
        return self.method in REFERENCES


@dataclass(frozen=True)
class Plan:
    """A comparison before anything is run.

    Attributes:
        path: The job file.
        job: As the file and the command line say, with the first seed.
        methods: In the order of the command line.
        rates: The one learning-rate grid of all methods, ascending.
        seeds: Compared.
        tuning_seed: Rates are chosen on it.
        out: Folder of the comparison.
        tree: The job file's tables.
        overrides: Values of the command line by dotted key.
    """

    path: Path
    job: JobConfig
    methods: tuple[Method, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tuning_seed: int
    out: Path
    tree: Mapping[str, Any]
    overrides: Mapping[str, Any]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of all rows that are trained: methods, then references."""
        return (*(method.name for method in self.methods), *REFERENCES)

    def tuning(self) -> list[Task]:
        """Return the runs that rates are chosen by; none if there is nothing to choose."""
        if len(self.rates) == 1:
            return []
        return [self.task(n, r, self.tuning_seed) for n in self.rows for r in self.rates]

    def compared(self, chosen: Mapping[str, float | None]) -> list[Task]:
        """Return the runs that are compared; rows without a rate have none."""
        return [
            self.task(name, rate, seed)
            for seed in self.seeds
            for name in self.rows
            if (rate := chosen[name]) is not None
        ]

    def task(self, name: str, rate: float, seed: int) -> Task:
        """Return one run.

        Raises:
            ConfigError: If the method cannot run with the job.
        """
        method = next((method for method in self.methods if method.name == name), None)
        job = job_of(self, method, rate, seed, [name] if method is None else [])
        run = f"{name}-{rate:g}-{seed}"
        return Task(
            method=name,
            rate=rate,
            seed=seed,
            job=job,
            # In a folder of its own, where its history is: one SQLite file for runs side by side
            # made them wait for each other, and fail.
            folder=self.out / "runs" / run / run,
            data=self.data_folder(seed),
            tuning=seed == self.tuning_seed,
        )

    def data_folder(self, seed: int) -> Path:
        """Return where the synthetic sites of a seed lie, once for all methods."""
        return self.out / "data" / f"seed-{seed}"

    def digest(self) -> str:
        """Return the sha256 of what all runs have in common: the job and where its records are.

        Methods, rates and seeds are not in it, so that a comparison can be extended.
        """
        content = [self.job.digest(), self.job.data.folder]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_plan(
    path: Path,
    overrides: Mapping[str, Any],
    methods: Sequence[Method],
    rates: Sequence[float] | None,
    seeds: int,
    out: Path | None,
) -> Plan:
    """Return the plan, with every job read and checked.

    Args:
        path: The job file.
        overrides: Values that replace the file's, by dotted key.
        methods: To compare.
        rates: Learning rates to choose from; the job's times 1/2, 1 and 2 if not given.
        seeds: How many, from the job's own on.
        out: Folder of the comparison; ``runs/compare-<name of the job>`` if not given.

    Raises:
        ConfigError: If job, rates or seeds cannot be used, or a method cannot run with the job.
    """
    if not 1 <= seeds <= TUNING_OFFSET:
        raise ConfigError(f"--seeds {seeds}: expected 1 to {TUNING_OFFSET}; 3 give an interval")
    tree = read_toml(path, "job file")
    job = parse_job(tree, str(path), overrides)
    if job.model.bases:
        raise ConfigError(
            f"{path}: model.bases gives sites bases of their own, and a comparison scores every "
            "model at every site, which takes one base; leave bases out"
        )
    grid = rates or [job.train.learning_rate * factor for factor in DEFAULT_FACTORS]
    plan = Plan(
        path=path,
        job=job,
        methods=tuple(methods),
        # Six digits are what names of folders show, so that no two rates share one.
        rates=tuple(sorted({float(f"{rate:.6g}") for rate in grid})),
        seeds=tuple(range(job.seed, job.seed + seeds)),
        tuning_seed=job.seed + TUNING_OFFSET,
        out=out or Path("runs") / f"compare-{job.name}",
        tree=tree,
        overrides=dict(overrides),
    )
    for task in [*plan.tuning(), *plan.compared(dict.fromkeys(plan.rows, plan.rates[-1]))]:
        if not task.reference:
            AGGREGATORS[task.job.aggregate.rule](task.job.aggregate)  # refuses what is unsound
    return plan


def job_of(
    plan: Plan, method: Method | None, rate: float, seed: int, baselines: Sequence[str]
) -> JobConfig:
    """Return the job of one run; ``method`` is ``None`` for a reference.

    Raises:
        ConfigError: The job's own refusal, with the method's name before it.
    """
    own: dict[str, Any] = {
        "train.learning_rate": rate,
        "seed": seed,
        "evaluate.baselines": list(baselines),  # trained once per seed, not once per method
        "evaluate.gallery_queries": 0,
        "simulation.engine": "local",
        "simulation.threads": 1,
        "simulation.workers": 1,
    }
    if method is not None:
        own |= {**method.settings, "aggregate.hostile": _hostile(plan.job, method)}
    source = str(plan.path)
    try:
        return parse_job(plan.tree, source, {**plan.overrides, **own})
    except ConfigError as error:
        said = str(error).removeprefix(f"{COMMAND_LINE}: ").removeprefix(f"{source}: ")
        who = f"{method.name}: cannot run with {source}" if method else source
        raise ConfigError(f"{who}: {said}") from None


def _hostile(job: JobConfig, method: Method) -> int:
    """Return how many hostile sites a method is told to expect: the job's, if it asks at all."""
    expected = job.aggregate.hostile or len(job.attack.sites) or 1
    own = {"rule": method.rule, "combine": method.combine, "hostile": expected}
    asks = AggregateConfig.model_validate(own).unsound() is None
    return expected if asks else 0


def parse_rates(text: str | None) -> list[float] | None:
    """Read ``--rates 0.001,0.002``.

    Raises:
        ConfigError: If one is not a number above 0 and at most 1.
    """
    if text is None:
        return None
    rates: list[float] = []
    for part in text.split(","):
        try:
            rates.append(float(part))
        except ValueError:
            rates.append(0.0)
        if not 0 < rates[-1] <= 1:
            raise ConfigError(
                f"--rates {text!r}: {part.strip()!r} is no learning rate; expected numbers above "
                "0 and at most 1, such as 0.001,0.002,0.004"
            )
    return rates
