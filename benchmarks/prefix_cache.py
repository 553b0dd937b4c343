"""The frozen-prefix cache: the top third of the layers adapted, with the cache and without.

Without is the same engine on the same records with ``train.prefix_cache_mb = 0``, so that it
computes the frozen layers anew in every step. The first round with the cache, which fills it,
stands beside the ratio, and so does the ratio of the operations: no cache can gain more than it
leaves out, and at the size of ViT-B/32 that is less than the target.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.agreement import compare
from benchmarks.engine import EngineLoop, Precision, benchmark_job, random_start
from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.geometry import GEOMETRIES, SMALL, SMOKE, VIT_B32, Geometry, temporary_base
from benchmarks.machine import cores
from benchmarks.records import random_sites
from benchmarks.schema import Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_least, interleave, ratio

LEAST: Final = 3.0


@dataclass(frozen=True)
class Case:
    """One row: a geometry, how many of its top layers are adapted, and the sites' work."""

    geometry: Geometry
    layers: str
    sites: int
    fit: LocalFit
    precision: Precision = "float32"


CASES: Final[Sequence[Case]] = (
    Case(SMALL, "top:1/3", 8, LocalFit(8, 4)),
    Case(SMALL, "top:1/3", 8, LocalFit(8, 4), "bfloat16"),
    Case(VIT_B32, "top:1/3", 4, LocalFit(4, 2), "bfloat16"),
)
SMOKE_CASE: Final = Case(SMOKE, "top:1", 2, LocalFit(4, 2))


def measure(session: Session, cases: Sequence[Case]) -> None:
    """Measure some rows."""
    for case in cases:
        with temporary_base(case.geometry) as base:
            session.add(_row(session, base, case))


def _row(session: Session, base: Path, case: Case) -> Row:
    job = benchmark_job(base, case.fit, ATTENTION, precision=case.precision, layers=case.layers)
    without = job.model_copy(update={"train": job.train.model_copy(update={"prefix_cache_mb": 0})})
    pairs = case.fit.batch_size * case.fit.steps
    sites = random_sites(case.geometry, case.sites, pairs)
    cached, uncached = EngineLoop.load(job), EngineLoop.load(without)
    start = random_start(cached.encoder.layout)
    begun = time.perf_counter()
    ours = cached.train_round(sites, start)
    first = time.perf_counter() - begun
    gates = []
    if case.precision == "float32":  # bf16 rounds too much to compare element by element
        theirs = uncached.train_round(sites, start)
        ends = [(one.factors, two.factors) for one, two in zip(ours, theirs, strict=True)]
        gates = compare("with cache and without, in fp32", start.factors, ends)
    contenders = [
        Contender("with cache", alone(lambda: cached.train_round(sites, start)), cores()),
        Contender("without", alone(lambda: uncached.train_round(sites, start)), cores()),
    ]
    arms = interleave(contenders, session.repeats, session.watch)
    name = (
        f"{case.geometry.name}, {case.layers}, {case.sites} sites x {case.fit.steps} steps x "
        f"batch {case.fit.batch_size}, {case.precision}"
    )
    found = ratio("without / with cache", arms["without"], arms["with cache"], at_least(LEAST))
    return Row(
        name=name,
        gates=gates,
        arms=list(arms.values()),
        ratios=[found],
        numbers={
            "first round with the cache, seconds": round(first, 3),
            "operations without / with cache": round(
                _operations(lambda: uncached.train_round(sites, start))
                / _operations(lambda: cached.train_round(sites, start)),
                3,
            ),
        },
    )


def _operations(work: Callable[[], object]) -> int:
    """Count the operations of matrix products in what is done."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def main() -> int:
    """Run the benchmark."""
    parser = standard_parser(__doc__)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="only rows of this one")
    options = parser.parse_args()
    wanted = options.geometry
    cases = [case for case in CASES if wanted is None or case.geometry.name == wanted]
    session = Session("prefix_cache", "The frozen-prefix cache", options.repeats)
    measure(session, cases)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
