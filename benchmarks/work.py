"""One round of many sites, to be done by any side: the same records and the same steps for all."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.agreement import plain_records
from benchmarks.engine import EngineLoop, Precision, benchmark_job, random_start
from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.geometry import Geometry
from benchmarks.plain import Padding, PlainLoop
from benchmarks.records import random_sites
from client.data.records import SiteData


@dataclass(frozen=True)
class RoundWork:
    """A round; travels to worker processes.

    Attributes:
        base: A checkpoint.
        geometry: Its size.
        sites: How many sites train.
        fit: What each of them does.
        targets: Adapted layers.
        device: Where to compute.
    """

    base: Path
    geometry: Geometry
    sites: int
    fit: LocalFit
    targets: tuple[str, ...] = ATTENTION
    device: str = "cpu"

    @property
    def pairs(self) -> int:
        """Training pairs of a site: every step finds new ones."""
        return self.fit.batch_size * self.fit.steps

    @property
    def steps(self) -> int:
        """Steps of all sites together."""
        return self.sites * self.fit.steps

    def of_sites(self, sites: int) -> "RoundWork":
        """Return the same with another number of sites."""
        return replace(self, sites=sites)

    def records(self) -> list[SiteData]:
        """Return the sites' records."""
        return random_sites(self.geometry, self.sites, self.pairs)

    def plain_loop(self, dtype: torch.dtype = torch.float32) -> PlainLoop:
        """Load the base for the plain loop."""
        return PlainLoop(self.base, self.targets, dtype=dtype, device=self.device)

    def plain_round(
        self, dtype: torch.dtype = torch.float32, padding: Padding = "max_length"
    ) -> Callable[[], object]:
        """Return what does the round with the plain loop."""
        loop = self.plain_loop(dtype)
        loop.padding = padding
        clients, start = plain_records(loop, self.records()), loop.state()
        return lambda: loop.train_round(clients, start, self.fit)

    def engine_round(self, precision: Precision = "float32") -> Callable[[], object]:
        """Return what does the round with the engine."""
        job = benchmark_job(self.base, self.fit, self.targets, precision=precision)
        engine = EngineLoop.load(job, self.device)
        sites, start = self.records(), random_start(engine.encoder.layout)
        return lambda: engine.train_round(sites, start)
