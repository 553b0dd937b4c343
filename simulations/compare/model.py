"""What ``comparison.json`` holds; table, CSV and page are made from it and from nothing else."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from shared.page.numbers import Reading
from shared.results import Metric

Measure = Literal[
    "own", "worst", "others", "auroc", "i2t_r5", "t2i_r5",
    "error", "bytes_up", "bytes_down", "seconds",
]  # fmt: skip
MEASURES: tuple[Measure, ...] = (
    "own", "worst", "others", "auroc", "i2t_r5", "t2i_r5",
    "error", "bytes_up", "bytes_down", "seconds",
)  # fmt: skip

Kind = Literal["shared", "personal", "local", "centralised", "base"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(_Frozen):
    """A number over seeds.

    Attributes:
        value: Mean over the seeds that have it.
        low: Lower end of the 95 % interval over seeds (Student's t); ``None`` with one seed.
        high: Upper end.
        by_seed: One number per seed of the comparison; ``None`` where there is none.
    """

    value: float
    low: float | None
    high: float | None
    by_seed: list[float | None]


class Rate(_Frozen):
    """One learning rate that was tried on the tuning seed.

    Attributes:
        rate: The learning rate.
        base_loss: Mean over sites of the base's validation loss, in nats.
        loss: The same after training; ``None`` if it was not finite.
        base_level: Mean over sites of the base's main metric on the records of the choice.
        level: The same of the model in use; ``None`` if it could not be measured.
    """

    rate: float
    base_loss: float | None
    loss: float | None
    base_level: float | None = None
    level: float | None = None


class Row(_Frozen):
    """One method, or what the methods are compared with.

    Attributes:
        name: As on the command line; ``local``, ``centralised`` and ``base`` are references.
        kind: What its sites use.
        rate: The chosen learning rate; ``None`` if every rate diverged, and for the base.
        tried: Every rate of the grid; empty if there was nothing to choose.
        notes: What a reader must know, as sentences without a full stop.
        cells: Every measure that the row has. ``own``, ``worst`` and ``others`` are in the main
            metric: on the sites' own test splits (mean of sites, worst site), and of every
            site's model in use on all other sites' test splits.
        difference: Own test minus that of the best method, paired by seed.
        word: What may be said of that difference.
    """

    name: str
    kind: Kind
    rate: float | None
    tried: list[Rate] = []
    notes: list[str] = []
    cells: dict[Measure, Cell] = {}
    difference: Cell | None = None
    word: Reading | None = None


class MethodComparison(_Frozen):
    """A comparison, measured.

    Attributes:
        schema_version: Of this schema.
        name: Of the job.
        command: What makes it.
        created: When this file was written, ISO 8601 with zone.
        job_sha256: Digest of job and records, as in ``plan.json``.
        main_metric: The measure fixed in the job before the run.
        margin: Least absolute difference that counts as better or worse.
        seeds: Compared.
        tuning_seed: The seed that rates were chosen on; ``None`` if there was one rate only.
        rates: The grid.
        rounds: Of every run.
        steps: Optimiser steps a site takes in a round, as the job says.
        personal_steps: Further steps of methods with personal adapters.
        sites: Names of the sites.
        phantoms: Whether records were drawn by the generator, anew for every seed.
        best: The method with the best own test; ``None`` if none has a number.
        complete: Whether every compared run had every contribution of every site.
        sentences: What the numbers say, in words.
        rows: Methods in the order of the command line, then references.
        facts: Further lines for the record.
    """

    schema_version: Literal[1] = 1
    name: str
    command: str
    created: str
    job_sha256: str
    main_metric: Metric
    margin: float
    seeds: list[int]
    tuning_seed: int | None
    rates: list[float]
    rounds: int
    steps: str
    personal_steps: int
    sites: list[str]
    phantoms: bool
    best: str | None
    complete: bool
    sentences: list[str]
    rows: list[Row]
    facts: dict[str, str] = {}
