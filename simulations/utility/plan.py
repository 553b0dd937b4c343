"""What is measured: rows, columns and seeds, and the job of every cell, all else equal.

Rounds, steps, records, base and adapter are the job file's for every cell. The noise follows from
epsilon alone, by the same accountant that a site uses.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from shared.config import AggregationRule, JobConfig, parse_job
from shared.errors import ConfigError
from shared.toml_files import read_toml

Mechanism = Literal["separable", "grouped", "distributed"]
Bank = Literal["in-domain", "out-of-domain"]
Reference = Literal["base", "local", "centralised"]

EPSILONS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, math.inf)
REFERENCES: Final[tuple[Reference, ...]] = ("base", "local", "centralised")
RATE_FACTORS: Final = (0.25, 1.0, 4.0)
"""Learning rates to choose from, times the job's."""
TUNING_OFFSET: Final = 1000
"""The seed that rates are chosen on is the first one plus this; no compared seed is."""
_TUNED_AT: Final = {1.0: 1.0, 2.0: 1.0, 4.0: 4.0, 8.0: 4.0, 16.0: math.inf, math.inf: math.inf}
"""Epsilon at which the rate of another one is chosen."""
STUDIES: Final = 1000
"""Studies of a site for training and validation."""
TEST_STUDIES: Final = 160

_LARGEST: Final = 16.0
"""Epsilon that stands in a job without noise, where a job needs one."""


@dataclass(frozen=True)
class Row:
    """One way to train with privacy.

    Attributes:
        mechanism: ``separable``, each site with noise of its own, records against public pairs;
            ``grouped``, the same with records against those of their group; ``distributed``, one
            noised sum of all sites per step.
        rule: Of aggregation: which factors are trained.
        bank: Where the public pairs come from.
    """

    mechanism: Mechanism
    rule: AggregationRule = "altfold"
    bank: Bank = "in-domain"

    @property
    def name(self) -> str:
        """For files and progress."""
        return f"{self.mechanism}-{self.rule}-{self.bank}"


ROWS: Final = (
    Row("separable"),
    Row("separable", bank="out-of-domain"),
    Row("distributed", "ffa"),
    Row("distributed", "ffa", bank="out-of-domain"),
    Row("grouped"),
    Row("separable", "ffa"),
    Row("separable", "fedavg"),
)


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        row: A way to train with privacy, or a reference without any.
        epsilon: Over the whole training; infinite without noise, and for references.
        seed: Of records, starts and batches. The noise has none.
        rate: Learning rate.
        tuning: Whether it only serves to choose a rate.
    """

    row: Row | Reference
    epsilon: float
    seed: int
    rate: float
    tuning: bool = False

    @property
    def name(self) -> str:
        """Of the file that keeps it."""
        row = self.row if isinstance(self.row, str) else self.row.name
        return f"{row}-eps{self.epsilon:g}-rate{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A table before anything is trained.

    Attributes:
        path: The job file.
        tree: Its tables.
        job: As the file says.
        seeds: Compared.
        out: Folder that keeps records and cells.
    """

    path: Path
    tree: Mapping[str, Any]
    job: JobConfig
    seeds: tuple[int, ...]
    out: Path

    @property
    def tuning_seed(self) -> int:
        """The seed that rates are chosen on."""
        return self.seeds[0] + TUNING_OFFSET

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates to choose from."""
        return tuple(float(f"{self.job.train.learning_rate * f:.6g}") for f in RATE_FACTORS)

    def columns(self) -> list[tuple[Row | Reference, float]]:
        """Return every row with every epsilon, and the references, which have none."""
        private = [(row, epsilon) for row in ROWS for epsilon in EPSILONS]
        return [*((name, math.inf) for name in REFERENCES), *private]

    def tuning(self) -> list[Cell]:
        """Return the cells that rates are chosen by."""
        return [
            Cell(row, epsilon, self.tuning_seed, rate, tuning=True)
            for row, epsilon in self.columns()
            if row != "base" and tuned_as(row, epsilon) == (row, epsilon)
            for rate in self.rates
        ]

    def compared(self, rates: Mapping[tuple[Row | Reference, float], float]) -> list[Cell]:
        """Return the cells of the table, seed by seed."""
        return [
            Cell(row, epsilon, seed, rates[tuned_as(row, epsilon)] if row != "base" else 0.0)
            for seed in self.seeds
            for row, epsilon in self.columns()
        ]

    def job_of(self, cell: Cell) -> JobConfig:
        """Return the job of a cell; references have no privacy and no public set."""
        values: dict[str, Any] = {"seed": cell.seed}
        if cell.rate:
            values["train.learning_rate"] = cell.rate
        if isinstance(cell.row, str):
            tree = {name: table for name, table in self.tree.items() if name not in _PRIVATE}
            return parse_job(tree, str(self.path), values)
        grouped = cell.row.mechanism == "grouped"
        values |= {
            "aggregate.rule": cell.row.rule,
            "privacy.objective": "grouped" if grouped else "separable",
            "privacy.epsilon": cell.epsilon if math.isfinite(cell.epsilon) else _LARGEST,
        }
        if cell.row.mechanism == "distributed":
            values |= self._one_sum_a_step(cell)
        return parse_job(self.tree, str(self.path), values)

    def _one_sum_a_step(self, cell: Cell) -> dict[str, Any]:
        """Return what makes every step a round of its own, with the optimiser at the server."""
        return {
            "rounds": self.job.rounds * int(self.job.train.steps or 0),
            "train.steps": 1,
            "aggregate.clip_norm": self.job.privacy.clip_norm,
            "aggregate.server_optimizer": "adam",
            "aggregate.server_learning_rate": cell.rate,
            "privacy.mode": "distributed",
            "privacy.secure_aggregation": True,
        }

    def digest(self, cell: Cell) -> str:
        """Return what a kept cell must be of: its job, and how its records were made."""
        content = [self.job_of(cell).digest(), cell.name, STUDIES, TEST_STUDIES, 1]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


_PRIVATE: Final = ("privacy", "proxy")


def tuned_as(row: Row | Reference, epsilon: float) -> tuple[Row | Reference, float]:
    """Return the row and epsilon whose learning rate these have.

    A row with the out-of-domain bank takes the rate of the same row with the other.
    """
    of = row if isinstance(row, str) else Row(row.mechanism, row.rule)
    return of, _TUNED_AT[epsilon]


def make_plan(path: Path, seeds: int, out: Path) -> Plan:
    """Read the job file.

    Args:
        path: The job, with ``[privacy]`` and ``[proxy]``.
        seeds: How many, from the job's own on.
        out: Folder that keeps records and cells.

    Raises:
        ConfigError: If the job cannot be used.
    """
    tree = read_toml(path, "job file")
    job = parse_job(tree, str(path), {})
    if len(job.data.sites) < 3 or job.proxy.phantoms is None:
        raise ConfigError(
            f"{path}: needs data.sites with three names or more, over which noise is distributed, "
            "and proxy.phantoms, how many public pairs to make"
        )
    return Plan(path, tree, job, tuple(range(job.seed, job.seed + seeds)), out)


def best_rate(found: Sequence[tuple[float, float]]) -> float:
    """Return the rate with the highest level; of equal ones the smallest.

    Args:
        found: Rate and level of every cell of one row and epsilon.
    """
    return max(sorted(found), key=lambda pair: pair[1])[0]
