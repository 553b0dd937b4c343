"""Loading: the share of training that goes into what the encoder reads.

Loading is reading a step's pictures from the site's memory-mapped cache, moving them at random,
padding its texts' tokens, and bringing both to the numbers that the towers take. Tokenising and
decoding happen once for a site and stand beside the share. On a GPU the share is of the time
until the device is asked, so that it is an upper bound.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, ParamSpec, TypeVar
from unittest.mock import patch

from benchmarks.engine import EngineLoop, Precision, benchmark_job, random_start
from benchmarks.fit import ALL_LINEAR, LocalFit
from benchmarks.geometry import SMALL, SMOKE, VIT_B32, Geometry, temporary_base
from benchmarks.records import write_sites
from benchmarks.schema import Ratio, Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_most, interleave, ratio_of
from client import encoding
from client.batches import prepare
from client.data.load import load_site
from client.data.records import SiteData
from client.data.sources import find_sites
from shared.model.encoder import DualEncoder

MOST: Final = 0.05
SHIFT: Final = 2
"""Pixels, as in a job that does not say."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """One row: a geometry, how many sites train, and what each does."""

    geometry: Geometry
    sites: int
    fit: LocalFit
    precision: Precision = "float32"


CASES: Final[Sequence[Case]] = (
    Case(SMALL, 8, LocalFit(32, 8)),
    Case(SMALL, 8, LocalFit(32, 8), "bfloat16"),
    Case(VIT_B32, 4, LocalFit(4, 2)),
    Case(VIT_B32, 4, LocalFit(4, 2), "bfloat16"),
)
SMOKE_CASE: Final = Case(SMOKE, 2, LocalFit(4, 2))


@dataclass
class Stopwatch:
    """Adds up the time that some functions take; they must not call each other."""

    seconds: float = 0.0
    laps: list[float] = field(default_factory=list)

    def timed(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Return a function that does the same and is timed."""

        def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
            begun = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begun

        return call

    def lap(self) -> None:
        """Note the time since the last lap."""
        self.laps.append(self.seconds)
        self.seconds = 0.0


@contextmanager
def watched(encoder: DualEncoder) -> Iterator[Stopwatch]:
    """Time everything that brings records to an encoder's towers."""
    watch = Stopwatch()
    with (
        patch.object(encoding, "_pixels", watch.timed(encoding._pixels)),
        patch.object(encoder, "pad", watch.timed(encoder.pad)),
        patch.object(encoder, "_values", watch.timed(encoder._values)),
    ):
        yield watch


def measure(session: Session, cases: Sequence[Case]) -> None:
    """Measure some rows."""
    for case in cases:
        with temporary_base(case.geometry) as base, TemporaryDirectory() as folder:
            session.add(_row(session, base, Path(folder), case))


def _row(session: Session, base: Path, folder: Path, case: Case) -> Row:
    job = benchmark_job(base, case.fit, ALL_LINEAR, precision=case.precision)
    job = job.model_copy(update={"train": job.train.model_copy(update={"shift_pixels": SHIFT})})
    loop = EngineLoop.load(job)
    begun = time.perf_counter()
    sites = _mapped_sites(loop.encoder, folder, case)
    decoding = time.perf_counter() - begun
    start = random_start(loop.encoder.layout)
    begun = time.perf_counter()
    for data in sites:
        prepare(loop.encoder, data, "train")
    tokenising = time.perf_counter() - begun
    with watched(loop.encoder) as watch:

        def train() -> None:
            loop.train_round(sites, start)
            watch.lap()

        contender = Contender("a round of training", alone(train), 1)
        arm = interleave([contender], session.repeats, session.watch)[contender.name]
    return Row(
        name=(
            f"{case.geometry.name}, {case.sites} sites x {case.fit.steps} steps x batch "
            f"{case.fit.batch_size}, {case.precision}"
        ),
        arms=[arm],
        ratios=[_share(watch.laps[-session.repeats :], arm.wall)],
        numbers={
            "decoding into the cache, once, seconds": round(decoding, 4),
            "tokenising, once, seconds": round(tokenising, 4),
        },
    )


def _share(loading: Sequence[float], wall: Sequence[float]) -> Ratio:
    shares = [one / whole for one, whole in zip(loading, wall, strict=True)]
    return ratio_of("loading: share of the round", shares, at_most(MOST))


def _mapped_sites(encoder: DualEncoder, folder: Path, case: Case) -> list[SiteData]:
    """Return sites whose pictures are mapped from their caches, as in a run on files."""
    write_sites(folder / "data", case.geometry, case.sites, case.fit.batch_size * case.fit.steps)
    return [
        load_site(source, encoder.to_pixels, folder / "caches" / source.name, encoder.preprocessing)
        for source in find_sites(folder / "data")
    ]


def main() -> int:
    """Run the benchmark."""
    options = standard_parser(__doc__).parse_args()
    session = Session("loading", "Loading beside training", options.repeats)
    measure(session, CASES)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
