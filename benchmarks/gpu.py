"""The engine on a GPU, at the geometries of CLIP ViT-B/32 and ViT-L/14.

64 sites of batch 8 against the plain loop, eager and as a CUDA graph, and the share of the GPU's
measured bf16 peak; then 256 sites on the one device. Without a CUDA device nothing is measured,
and the report says so.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from benchmarks.agreement import agreement, plain_records
from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.flops import MatrixPeak, step_flops
from benchmarks.geometry import GEOMETRIES, VIT_B32, VIT_L14, Geometry, temporary_base
from benchmarks.graphs import GraphedLoop
from benchmarks.machine import cores
from benchmarks.peak import share_of_peak
from benchmarks.schema import Arm, Ratio, Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_least, interleave, ratio, ratio_of
from benchmarks.work import RoundWork

LEAST: Final = 20.0
LEAST_SHARE: Final = 0.35

EAGER: Final = "plain loop, eager, bf16 weights"
EAGER_FP32: Final = "plain loop, eager, fp32"
GRAPHED: Final = "plain loop, CUDA graph, bf16 weights"
ENGINE: Final = "engine, bf16"


@dataclass(frozen=True)
class Case:
    """A geometry and what is trained: few sites against the plain loop, many alone."""

    geometry: Geometry
    fit: LocalFit
    few: int
    many: int


CASES: Final = tuple(Case(geometry, LocalFit(8, 2), 64, 256) for geometry in (VIT_B32, VIT_L14))


def measure(session: Session, case: Case, device: str = "cuda") -> None:
    """Measure both rows of a geometry."""
    fit, geometry = case.fit, case.geometry
    with temporary_base(geometry) as base:
        gates = agreement(base, geometry, ATTENTION, fit.batch_size, device)
        work = RoundWork(base, geometry, case.few, fit, device=device)
        row, engine = _against_plain(session, work)
        session.add(row.model_copy(update={"gates": gates}))
        session.add(_many_sites(session, work.of_sites(case.many), case.few, engine))


def _against_plain(session: Session, work: RoundWork) -> tuple[Row, Arm]:
    name = _name(work)
    peak = MatrixPeak(torch.bfloat16, cores(), work.device)
    rounds = {
        EAGER: _relaxed(work.plain_round(torch.bfloat16)),
        EAGER_FP32: _relaxed(work.plain_round()),
        ENGINE: work.engine_round("bfloat16"),
        peak.name: peak.run,
    }
    try:
        rounds[GRAPHED] = _relaxed(_graphed_round(work))
    except RuntimeError as error:  # whatever CUDA says when a step cannot be captured
        line = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        session.leave_out(f"{name}: {GRAPHED}", f"{type(error).__name__}: {line}")
    contenders = [Contender(label, alone(done), cores()) for label, done in rounds.items()]
    arms = interleave(contenders, session.repeats, session.watch)
    tokens = work.geometry.caption[1]
    pair = step_flops(work.base, work.geometry, tokens)
    flops = pair * work.fit.batch_size * work.steps
    ratios = list(_ratios(arms))
    shares = (arms[peak.name], peak.flops, at_least(LEAST_SHARE))
    ratios.append(share_of_peak(arms[ENGINE], flops, *shares))
    speed = peak.flops / arms[peak.name].wall_median / 1e12
    numbers = {"matrix product, bfloat16, TFLOP/s": round(speed, 1)}
    return Row(name=name, arms=list(arms.values()), ratios=ratios, numbers=numbers), arms[ENGINE]


def _ratios(arms: dict[str, Arm]) -> Iterator[Ratio]:
    yield ratio(f"{EAGER} / engine", arms[EAGER], arms[ENGINE], at_least(LEAST))
    for name in (EAGER_FP32, GRAPHED):
        if name in arms:
            yield ratio(f"{name} / engine", arms[name], arms[ENGINE])


def _many_sites(session: Session, work: RoundWork, few: int, before: Arm) -> Row:
    """Time many sites on the one device, and note the memory that they take."""
    on_gpu = work.device.startswith("cuda")
    done = work.engine_round("bfloat16")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    arms = interleave([Contender(ENGINE, alone(done), cores())], session.repeats, session.watch)
    values = [
        (many / work.sites) / (seconds / few)
        for many, seconds in zip(arms[ENGINE].wall, before.wall, strict=True)
    ]
    numbers: dict[str, float] = {}
    if on_gpu:
        numbers["peak memory, MiB"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    found = ratio_of(f"time per site, {work.sites} sites / {few} sites", values)
    return Row(name=_name(work), arms=list(arms.values()), ratios=[found], numbers=numbers)


def _name(work: RoundWork) -> str:
    return (
        f"{work.geometry.name} on {work.device}, {work.sites} sites x {work.fit.steps} steps x "
        f"batch {work.fit.batch_size}"
    )


def _graphed_round(work: RoundWork) -> Callable[[], object]:
    if not work.device.startswith("cuda"):
        raise RuntimeError("CUDA graphs need a CUDA device")
    loop = work.plain_loop(torch.bfloat16)
    clients, start = plain_records(loop, work.records()), loop.state()
    with _any_algorithm():
        graphed = GraphedLoop(loop, clients[0], work.fit)
    return lambda: graphed.train_round(clients, start, work.fit)


def _relaxed(done: Callable[[], object]) -> Callable[[], object]:
    """Let the plain loop use any algorithm; the engine asks for deterministic ones."""

    def relaxed() -> object:
        with _any_algorithm():
            return done()

    return relaxed


@contextmanager
def _any_algorithm() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before, warn_only=warn_only)


def main() -> int:
    """Run the benchmark, or say that there is no GPU."""
    parser = standard_parser(__doc__)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="only this one")
    options = parser.parse_args()
    session = Session("gpu", "On a GPU", options.repeats)
    for case in CASES:
        if options.geometry in {None, case.geometry.name}:
            if torch.cuda.is_available():
                measure(session, case)
            else:
                session.leave_out(f"{case.geometry.name} on a GPU", "no CUDA device here")
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
