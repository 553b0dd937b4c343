"""``[evaluate]``, ``[attack]`` and ``[simulation]``."""

from typing import Annotated, Literal

from pydantic import Field

from shared.config.table import Table
from shared.results import Metric

Engine = Literal["local", "flower"]
AttackKind = Literal["scale", "flip", "nan", "shape", "dtype", "weights", "stale"]


class EvaluateConfig(Table):
    """``[evaluate]``: how runs are scored; fixed before the run."""

    main: Metric = "auroc"
    """The measure of the report's first question."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Least absolute difference that is called better or worse."""
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    baselines: list[Literal["local", "centralised"]] = ["local", "centralised"]
    gallery_queries: Annotated[int, Field(ge=0, le=12)] = 4
    minimum_count: Annotated[int, Field(ge=1)] = 20


class AttackConfig(Table):
    """``[attack]``: simulated sites that send something else than what they trained."""

    sites: dict[str, AttackKind] = {}
    """Kind of attack by site: scale, flip, nan, shape, dtype, weights or stale."""


class SimulationConfig(Table):
    """``[simulation]``: one machine that plays all sites."""

    engine: Engine = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads per process; part of what makes results repeat bit for bit."""
    samples_at_once: Annotated[int, Field(ge=1)] | None = None
    """Training samples of one step, over all sites of a cohort; by the device and its free memory
    if not given. 1 trains one site after the other."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Processes: with two or more, the baselines train beside the federation."""
