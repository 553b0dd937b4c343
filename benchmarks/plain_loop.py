"""The engine against the plain loop that a researcher would write with peft.

``python -m benchmarks.plain_loop`` measures the small geometry at batches of 4, 8 and 32 and with
all linear layers adapted; ``--geometry vit-b32`` measures that of CLIP ViT-B/32.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks.agreement import agreement
from benchmarks.engine import Precision
from benchmarks.fit import ALL_LINEAR, ATTENTION, LocalFit
from benchmarks.geometry import GEOMETRIES, Geometry, temporary_base
from benchmarks.machine import cores, multiplies_bf16
from benchmarks.plain import Padding
from benchmarks.schema import Arm, Ratio, Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_least, fastest, interleave, ratio
from benchmarks.work import RoundWork
from benchmarks.workers import plain_workers

ONE_THREAD = "plain, one thread"
ALL_CORES = "plain, all cores"
PER_CORE = "plain, one process per core"
LONGEST = "plain, all cores, padded to the batch's longest"
BF16 = "plain, all cores, bf16 weights"
BF16_PER_CORE = "plain, one process per core, bf16 weights"
ENGINE_FP32 = "engine, fp32"
ENGINE_BF16 = "engine, bf16"
ENGINE_FP32_ONE = "engine, fp32, one thread"
ENGINE_BF16_ONE = "engine, bf16, one thread"

_PLAIN: Final[Mapping[str, tuple[torch.dtype, Padding, bool]]] = {
    ONE_THREAD: (torch.float32, "max_length", False),
    ALL_CORES: (torch.float32, "max_length", True),
    LONGEST: (torch.float32, "longest", True),
    BF16: (torch.bfloat16, "max_length", True),
}
"""Type of the frozen weights, padding, and whether it has all cores."""
_APART: Final = {PER_CORE: torch.float32, BF16_PER_CORE: torch.bfloat16}
_ENGINE: Final[Mapping[str, tuple[Precision, bool]]] = {
    ENGINE_FP32: ("float32", True),
    ENGINE_BF16: ("bfloat16", True),
    ENGINE_FP32_ONE: ("float32", False),
    ENGINE_BF16_ONE: ("bfloat16", False),
}
_FEW = (ONE_THREAD, ALL_CORES, ENGINE_FP32, ENGINE_BF16)
_LARGE = (ALL_CORES, LONGEST, BF16, ENGINE_FP32, ENGINE_BF16)
_ALL = (ONE_THREAD, ALL_CORES, BF16, *_APART, *_ENGINE)


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        sites: How many.
        fit: What each of them does.
        arms: What is timed, by name.
        targets: Adapted layers.
        single: Least ratios over the plain loop in one process, fp32 and bf16.
        best: Least ratios over the fastest plain arm, fp32 and bf16.
    """

    sites: int
    fit: LocalFit
    arms: tuple[str, ...]
    targets: tuple[str, ...] = ATTENTION
    single: tuple[float, float] | None = None
    best: tuple[float, float] | None = None


CASES: Final[Mapping[str, tuple[Case, ...]]] = {
    "smoke": (Case(3, LocalFit(4, 2), (*_FEW, LONGEST)),),
    "small": (
        Case(16, LocalFit(4, 4), _FEW, single=(2.0, 3.0)),
        Case(16, LocalFit(8, 4), _ALL, single=(1.5, 2.4), best=(1.4, 2.0)),
        Case(16, LocalFit(32, 2), _FEW, single=(1.2, 1.8)),
        Case(16, LocalFit(8, 4), _FEW, targets=ALL_LINEAR),
    ),
    "vit-b32": (Case(4, LocalFit(4, 1), _LARGE, single=(1.5, 4.0)),),
    "vit-l14": (Case(4, LocalFit(4, 1), _LARGE),),
}


def measure(session: Session, geometry: Geometry, cases: Sequence[Case]) -> None:
    """Measure some rows of a geometry."""
    with temporary_base(geometry) as base:
        for case in cases:
            session.add(_row(session, base, geometry, case))


def _row(session: Session, base: Path, geometry: Geometry, case: Case) -> Row:
    fit = case.fit
    layers = "q, v" if case.targets == ATTENTION else "all linear layers"
    name = (
        f"{geometry.name}, batch {fit.batch_size}, {case.sites} sites x {fit.steps} steps, {layers}"
    )
    session.say(f"{name}: gate, then {session.repeats} repeats")
    gates = agreement(base, geometry, case.targets, fit.batch_size)
    work = RoundWork(base, geometry, case.sites, fit, case.targets)
    with ExitStack() as stack:
        contenders = [_contender(stack, work, name) for name in case.arms]
        arms = interleave(contenders, session.repeats, session.watch)
    return Row(name=name, gates=gates, arms=list(arms.values()), ratios=list(_ratios(arms, case)))


def _contender(stack: ExitStack, work: RoundWork, name: str) -> Contender:
    if name in _APART:
        round_of_all = stack.enter_context(plain_workers(work, cores(), _APART[name]))
        return Contender(name, round_of_all, threads=1, processes=cores())
    if name in _PLAIN:
        dtype, padding, all_cores = _PLAIN[name]
        done = work.plain_round(dtype, padding)
    else:
        precision, all_cores = _ENGINE[name]
        done = work.engine_round(precision)
    return Contender(name, alone(done), threads=cores() if all_cores else 1)


def _ratios(arms: Mapping[str, Arm], case: Case) -> Iterator[Ratio]:
    fp32 = fastest(arms, (ENGINE_FP32, ENGINE_FP32_ONE))
    bf16 = fastest(arms, (ENGINE_BF16, ENGINE_BF16_ONE))
    words = "plain loop, one process"
    yield from _pair(words, fastest(arms, (ONE_THREAD, ALL_CORES)), (fp32, bf16), case.single)
    if case.best is not None:
        best = fastest(arms, (*_PLAIN, *_APART))
        words = f"best plain arm ({best.name.removeprefix('plain, ')})"
        yield from _pair(words, best, (fp32, bf16), case.best)
    if LONGEST in arms:
        yield ratio("plain loop padded to the batch's longest / engine fp32", arms[LONGEST], fp32)
    if BF16 in arms:
        yield ratio("plain loop with bf16 weights / engine bf16", arms[BF16], bf16)


def _pair(
    words: str, rival: Arm, engine: tuple[Arm, Arm], least: tuple[float, float] | None
) -> Iterator[Ratio]:
    """Yield a rival's ratio over the engine in fp32 and in bf16."""
    for kind, arm, value in zip(("fp32", "bf16"), engine, least or (None, None), strict=True):
        wanted = value is not None and (kind == "fp32" or multiplies_bf16())
        yield ratio(
            f"{words} / engine {kind}", rival, arm, at_least(value) if wanted and value else None
        )


def main() -> int:
    """Run the benchmark."""
    parser = standard_parser(__doc__)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="small")
    parser.add_argument("--batch", type=int, action="append", help="only rows of this batch size")
    options = parser.parse_args()
    suffix = "" if options.geometry == "small" else f"_{options.geometry.replace('-', '_')}"
    title = f"Against the plain peft loop, {options.geometry} geometry"
    session = Session(f"plain_loop{suffix}", title, options.repeats)
    wanted = options.batch
    cases = [c for c in CASES[options.geometry] if not wanted or c.fit.batch_size in wanted]
    measure(session, GEOMETRIES[options.geometry], cases)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
