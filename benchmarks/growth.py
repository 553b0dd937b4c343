"""How time and memory grow with sites and with rounds.

Every number of sites is a process of its own, which carries out whole rounds of the local engine;
the rounds after the first are the repeats. Memory is the peak of the process.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.fit import LocalFit
from benchmarks.geometry import SMALL, Geometry, write_base
from benchmarks.machine import cores
from benchmarks.records import write_sites
from benchmarks.rounds import RoundTimes, Wanted, rounds_in_child
from benchmarks.schema import Ratio, Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, arm_of, at_most, ratio_of
from simulations.cohorts import CPU_SAMPLES

SITES: Final = (10, 30, 100, 300, 1000)
ROUNDS: Final = (10, 100)
FIT: Final = LocalFit(batch_size=2, steps=1)
_KIB, _MIB = 2**10, 2**20


def measure(
    session: Session, geometry: Geometry, sites: Sequence[int], rounds: Sequence[int]
) -> None:
    """Measure growth with sites, then with rounds at the smallest number of sites."""
    with TemporaryDirectory(prefix="consilia-growth-") as folder:
        base, data = Path(folder) / "base", Path(folder) / "data"
        base.mkdir()
        write_base(base, geometry)
        write_sites(data, geometry, max(sites), FIT.batch_size * FIT.steps)

        def times(count: int, number: int) -> RoundTimes:
            session.say(f"{count} sites, {number} rounds")
            session.watch.probe()
            return rounds_in_child(Wanted(base, data, count, number, FIT, threads=cores()))

        session.add(_by_sites(geometry, {n: times(n, session.repeats + 1) for n in sites}))
        if rounds:
            session.add(_by_rounds(geometry, min(sites), {n: times(min(sites), n) for n in rounds}))


def _by_sites(geometry: Geometry, found: dict[int, RoundTimes]) -> Row:
    arms = [
        arm_of(Contender(f"{n} sites, a round", lambda: None, 1), t.seconds[1:], t.cpu[1:])
        for n, t in found.items()
    ]
    smallest = min(found)
    ratios = [_per_site(found, n, smallest) for n in found if n > smallest]
    ratios += _memory_ratio(found)
    numbers = {
        f"{n} sites, peak memory, MiB": round(times.peak_bytes / _MIB, 1)
        for n, times in found.items()
    }
    numbers |= _per_added_site(found)
    state = found[smallest].state_bytes
    numbers["adapter and optimizer state of a site, KiB"] = round(state / _KIB, 1)
    records = FIT.batch_size * FIT.steps * 3 * geometry.picture**2
    numbers["records of a site, KiB"] = round(records / _KIB, 1)
    name = f"{geometry.name}, batch {FIT.batch_size}, {FIT.steps} step a round"
    return Row(name=name, arms=arms, ratios=ratios, numbers=numbers)


def _per_site(found: dict[int, RoundTimes], many: int, few: int) -> Ratio:
    """Compare the time per site between two numbers of sites."""

    def values(of: Callable[[RoundTimes], list[float]]) -> list[float]:
        pairs = zip(of(found[many])[1:], of(found[few])[1:], strict=True)
        return [(a / many) / (b / few) for a, b in pairs]

    busy = median(values(lambda times: times.cpu))
    name = f"time per site, {many} sites / {few} sites"
    return ratio_of(name, values(lambda times: times.seconds), cpu=busy)


def _memory_ratio(found: dict[int, RoundTimes]) -> Iterator[Ratio]:
    """Compare what a site beyond the first cohort takes with its state; none without such."""
    beyond = [n for n in found if n > CPU_SAMPLES // FIT.batch_size]
    if len(beyond) < 2:
        return
    few, many = min(beyond), max(beyond)
    grown = max(0, found[many].peak_bytes - found[few].peak_bytes) / (many - few)
    name = f"memory per added site from {few} to {many} / adapter and optimizer state of one"
    yield ratio_of(name, [grown / found[few].state_bytes], at_most(1.0))


def _per_added_site(found: dict[int, RoundTimes]) -> dict[str, float]:
    """Return how much peak memory every further site takes, between neighbouring numbers."""
    counts = sorted(found)
    return {
        f"memory per added site, {few} to {many} sites, KiB": round(
            (found[many].peak_bytes - found[few].peak_bytes) / (many - few) / _KIB, 1
        )
        for few, many in itertools.pairwise(counts)
    }


def _by_rounds(geometry: Geometry, sites: int, found: dict[int, RoundTimes]) -> Row:
    few, many = min(found), max(found)
    first, last = found[few], found[many]
    ratios = [
        ratio_of(
            f"peak memory, {many} rounds / {few} rounds", [last.peak_bytes / first.peak_bytes]
        ),
        ratio_of(
            f"a round of the last {few - 1} of {many} / of the first",
            [median(last.seconds[1 - few :]) / median(last.seconds[1:few])],
        ),
    ]
    numbers = {
        f"{n} rounds, peak memory, MiB": round(times.peak_bytes / _MIB, 1)
        for n, times in found.items()
    }
    return Row(name=f"{geometry.name}, {sites} sites, by rounds", ratios=ratios, numbers=numbers)


def main() -> int:
    """Run the benchmark."""
    parser = standard_parser(__doc__)
    parser.add_argument("--sites", type=_counts, default=SITES, help="such as 10,100,1000")
    parser.add_argument("--rounds", type=_counts, default=ROUNDS, help="such as 10,100")
    options = parser.parse_args()
    session = Session("growth", "Growth with sites and with rounds", options.repeats)
    measure(session, SMALL, options.sites, options.rounds)
    return session.finish(options.out)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 2:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers from 2 on, such as 10,100")
    return counts


if __name__ == "__main__":
    sys.exit(main())
