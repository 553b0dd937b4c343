"""Seconds of a round beside training: messages, checks, sums, the commit.

A round lasts from its first message to its commit; what is spent in ``train_shared`` is
subtracted, round by round. The adapter is that of the small geometry, so messages have the size
that they have in earnest; the steps are as short as can be.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.fit import LocalFit
from benchmarks.geometry import SMALL, Geometry, write_base
from benchmarks.machine import cores
from benchmarks.records import write_sites
from benchmarks.rounds import RoundTimes, Wanted, rounds_in_child
from benchmarks.schema import Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, arm_of, at_most, ratio_of

MOST: Final[Mapping[int, float]] = {100: 0.2, 1000: 1.5}
"""Seconds by number of sites."""
FIT: Final = LocalFit(batch_size=2, steps=1)


def measure(session: Session, geometry: Geometry, most: Mapping[int, float]) -> None:
    """Measure some numbers of sites, each in a process of its own."""
    with TemporaryDirectory(prefix="consilia-overhead-") as folder:
        base, data = Path(folder) / "base", Path(folder) / "data"
        base.mkdir()
        write_base(base, geometry)
        write_sites(data, geometry, max(most), FIT.batch_size * FIT.steps)
        for sites, seconds in most.items():
            session.watch.probe()
            wanted = Wanted(base, data, sites, session.repeats + 1, FIT, threads=cores())
            session.add(_row(geometry, sites, rounds_in_child(wanted), seconds))


def _row(geometry: Geometry, sites: int, times: RoundTimes, most: float) -> Row:
    whole, training = times.seconds[1:], times.training[1:]
    busy, trained = times.cpu[1:], times.training_cpu[1:]
    arms = [
        arm_of(Contender(name, lambda: None, cores()), wall, cpu)
        for name, wall, cpu in (
            ("a round", whole, busy),
            ("training in it", training, trained),
        )
    ]
    beside = _beside(whole, training)
    shares = [a / b for a, b in zip(beside, whole, strict=True)]
    words = f"{sites} sites: seconds of a round beside training"
    return Row(
        name=f"{geometry.name}, {sites} sites x {FIT.steps} step x batch {FIT.batch_size}",
        arms=arms,
        ratios=[
            ratio_of(words, beside, at_most(most), cpu=median(_beside(busy, trained))),
            ratio_of(f"{sites} sites: share of the round", shares),
        ],
    )


def _beside(whole: Sequence[float], training: Sequence[float]) -> list[float]:
    return [max(0.0, a - b) for a, b in zip(whole, training, strict=True)]


def main() -> int:
    """Run the benchmark."""
    options = standard_parser(__doc__).parse_args()
    session = Session("round_overhead", "A round beside its training", options.repeats)
    measure(session, SMALL, MOST)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
