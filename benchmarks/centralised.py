"""Many sites in a round against one model trained on the same pairs at the same global batch.

Both with Consilia's own engine: K sites of batch b, and one site that holds all their pairs with
batch K x b. What remains above 1 is the price of K adapters instead of one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.engine import EngineLoop, Precision, benchmark_job, random_start
from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.geometry import GEOMETRIES, Geometry, temporary_base
from benchmarks.machine import cores
from benchmarks.records import random_site, random_sites
from benchmarks.schema import Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_most, interleave, ratio

MOST: Final = 1.05
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One row: so many sites, each with its own batch."""

    sites: int
    fit: LocalFit


CASES: Final = {
    "smoke": (Case(3, LocalFit(4, 2)),),
    "small": (Case(16, LocalFit(4, 4)), Case(16, LocalFit(8, 4)), Case(4, LocalFit(32, 4))),
    "vit-b32": (Case(8, LocalFit(4, 1)),),
    "vit-l14": (Case(4, LocalFit(4, 1)),),
}


def measure(session: Session, geometry: Geometry, cases: Sequence[Case]) -> None:
    """Measure some rows in both precisions."""
    with temporary_base(geometry) as base:
        for precision in PRECISIONS:
            job = benchmark_job(base, cases[0].fit, ATTENTION, precision=precision)
            engine = EngineLoop.load(job)
            for case in cases:
                session.add(_row(session, engine, geometry, case, precision))


def _row(
    session: Session, engine: EngineLoop, geometry: Geometry, case: Case, precision: Precision
) -> Row:
    fit, together = case.fit, case.sites * case.fit.batch_size
    start = random_start(engine.encoder.layout)
    sites = random_sites(geometry, case.sites, fit.batch_size * fit.steps)
    pooled = [random_site(geometry, together * fit.steps, case.sites)]
    federated = engine.with_fit(fit)
    central = engine.with_fit(LocalFit(together, fit.steps, fit.learning_rate))
    split = Contender(
        f"{case.sites} sites of batch {fit.batch_size}",
        alone(lambda: federated.train_round(sites, start)),
        cores(),
    )
    joined = Contender(
        f"centralised, batch {together}",
        alone(lambda: central.train_round(pooled, start)),
        cores(),
    )
    arms = interleave([split, joined], session.repeats, session.watch)
    name = f"{geometry.name}, {case.sites} x {fit.batch_size}, {fit.steps} steps, {precision}"
    words = "federated / centralised"
    found = ratio(words, arms[split.name], arms[joined.name], at_most(MOST))
    return Row(name=name, arms=list(arms.values()), ratios=[found])


def main() -> int:
    """Run the benchmark."""
    parser = standard_parser(__doc__)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="small")
    options = parser.parse_args()
    title = "Against centralised training at the same global batch"
    session = Session("centralised", title, options.repeats)
    measure(session, GEOMETRIES[options.geometry], CASES[options.geometry])
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
