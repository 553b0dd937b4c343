"""Arms timed in turns, and the ratios between them.

All arms run once per repeat, each repeat beginning with another one, so that whatever the
machine does meanwhile is shared by all. A ratio is taken within a repeat; the median of the
repeats is the result.
"""

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.machine import LoadWatch
from benchmarks.schema import Arm, Ratio, Target

Work = Callable[[], float | None]
"""Does an arm's work once; returns the CPU seconds that other processes spent on it, or ``None``
if nobody knows."""


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        name: What it is.
        work: Does it once.
        threads: Of torch, in each of its processes.
        processes: How many processes do the work.
    """

    name: str
    work: Work
    threads: int
    processes: int = 1


def alone(work: Callable[[], object]) -> Work:
    """Return work that is done in this process only."""

    def done() -> float:
        work()
        return 0.0

    return done


def interleave(
    contenders: Sequence[Contender], repeats: int, watch: LoadWatch, warm_ups: int = 1
) -> dict[str, Arm]:
    """Time all contenders in turns.

    Args:
        contenders: What to time.
        repeats: How often each.
        watch: Probes the machine before every repeat.
        warm_ups: Turns before the clock counts.

    Returns:
        Arms by name.
    """
    before = torch.get_num_threads()
    wall: dict[str, list[float]] = {c.name: [] for c in contenders}
    cpu: dict[str, list[float]] = {c.name: [] for c in contenders}
    # What is there now stays; collecting it before every turn would only take time.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(-warm_ups, repeats):
            watch.probe()
            first = turn % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                seconds, busy = _timed(contender)
                if turn >= 0:
                    wall[contender.name].append(seconds)
                    cpu[contender.name] += [] if busy is None else [busy]
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)
    return {c.name: arm_of(c, wall[c.name], cpu[c.name]) for c in contenders}


def _timed(contender: Contender) -> tuple[float, float | None]:
    torch.set_num_threads(contender.threads)
    gc.collect()
    _await_device()
    wall, cpu = time.perf_counter(), time.process_time()
    elsewhere = contender.work()
    _await_device()
    seconds, here = time.perf_counter() - wall, time.process_time() - cpu
    return seconds, None if elsewhere is None else here + elsewhere


def _await_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def arm_of(contender: Contender, wall: Sequence[float], cpu: Sequence[float] = ()) -> Arm:
    """Return an arm of given times; without CPU times if those are not known."""
    return Arm(
        name=contender.name,
        threads=contender.threads,
        processes=contender.processes,
        wall=[round(seconds, 5) for seconds in wall],
        cpu=[round(seconds, 5) for seconds in cpu],
        wall_median=round(median(wall), 5),
        cpu_median=round(median(cpu), 5) if cpu else None,
    )


def ratio(name: str, above: Arm, below: Arm, target: Target | None = None) -> Ratio:
    """Return how much longer ``above`` takes than ``below``."""
    values = [a / b for a, b in zip(above.wall, below.wall, strict=True)]
    busy = [a / max(b, 1e-9) for a, b in zip(above.cpu, below.cpu, strict=False)]
    return ratio_of(name, values, target, cpu=median(busy) if busy else None)


def ratio_of(
    name: str, values: Sequence[float], target: Target | None = None, cpu: float | None = None
) -> Ratio:
    """Return the median of some repeats with the smallest and the largest of them."""
    return Ratio(
        name=name,
        value=round(median(values), 4),
        low=round(min(values), 4),
        high=round(max(values), 4),
        cpu=None if cpu is None else round(cpu, 4),
        target=target,
    )


def fastest(arms: Mapping[str, Arm], names: Iterable[str]) -> Arm:
    """Return the arm of the smallest median wall time among some; those not timed are ignored."""
    timed = [arms[name] for name in names if name in arms]
    return min(timed, key=lambda arm: arm.wall_median)


def at_least(value: float) -> Target:
    """Return a target that large values meet."""
    return Target(bound="at least", value=value)


def at_most(value: float) -> Target:
    """Return a target that small values meet."""
    return Target(bound="at most", value=value)
