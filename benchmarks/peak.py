"""What share of the machine's matrix-product peak training reaches.

The peak is measured in the same run, between the repeats: the fastest product of two square
matrices in the same precision on the same threads. The engine trains at batch 16 with 128 pairs
at once; the plain loop's share stands beside it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch

from benchmarks.engine import Precision
from benchmarks.fit import LocalFit
from benchmarks.flops import MatrixPeak, step_flops
from benchmarks.geometry import GEOMETRIES, SMALL, VIT_B32, Geometry, temporary_base
from benchmarks.machine import cores
from benchmarks.schema import Arm, Ratio, Row, Target
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_least, interleave, ratio_of
from benchmarks.work import RoundWork

LEAST: Final = 0.75
TYPES: Final[Mapping[Precision, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
_PLAIN = "plain loop, float32"


def measure(session: Session, geometry: Geometry, sites: int, fit: LocalFit) -> None:
    """Measure one geometry in both precisions; all captions are as long as the longest."""
    tokens = geometry.caption[1]
    even = replace(geometry, caption=(tokens, tokens))
    peaks = {kind: MatrixPeak(dtype, cores()) for kind, dtype in TYPES.items()}
    with temporary_base(even) as base:
        work = RoundWork(base, even, sites, fit)
        pair = step_flops(base, even, tokens)
        arms = interleave(_contenders(work, peaks), session.repeats, session.watch)
    flops = pair * fit.batch_size * work.steps
    ratios = []
    for kind, peak in peaks.items():
        reference = (arms[peak.name], peak.flops)
        target = at_least(LEAST) if kind == "float32" else None
        ratios.append(share_of_peak(arms[f"engine, {kind}"], flops, *reference, target))
    reference = (arms[peaks["float32"].name], peaks["float32"].flops)
    ratios.append(share_of_peak(arms[_PLAIN], flops, *reference))
    numbers = {
        f"{peak.name}, GFLOP/s": round(peak.flops / arms[peak.name].wall_median / 1e9, 1)
        for peak in peaks.values()
    }
    name = f"{geometry.name}, {sites} sites x {fit.steps} steps x batch {fit.batch_size}"
    numbers["operations of a step per pair, MFLOP"] = round(pair / 1e6, 1)
    session.add(Row(name=name, arms=list(arms.values()), ratios=ratios, numbers=numbers))


def _contenders(work: RoundWork, peaks: Mapping[Precision, MatrixPeak]) -> list[Contender]:
    found = [Contender(_PLAIN, alone(work.plain_round()), cores())]
    for kind, peak in peaks.items():
        found += [
            Contender(f"engine, {kind}", alone(work.engine_round(kind)), cores()),
            Contender(peak.name, alone(peak.run), cores()),
        ]
    return found


def share_of_peak(
    arm: Arm, flops: float, reference: Arm, reference_flops: float, target: Target | None = None
) -> Ratio:
    """Return which share of a peak an arm reaches.

    Args:
        arm: Does ``flops`` useful operations.
        flops: Of the arm.
        reference: Does ``reference_flops`` operations at the machine's peak.
        reference_flops: Of the reference.
        target: Of the share.
    """
    values = [
        (flops / seconds) / (reference_flops / fastest)
        for seconds, fastest in zip(arm.wall, reference.wall, strict=True)
    ]
    return ratio_of(f"{arm.name}: share of the peak", values, target)


CASES: Final[Sequence[tuple[Geometry, int, LocalFit]]] = (
    (SMALL, 8, LocalFit(16, 4)),
    (VIT_B32, 2, LocalFit(16, 1)),
)
"""Geometry, sites and their work; fewer sites of the large one, whose steps take seconds."""


def main() -> int:
    """Run the benchmark."""
    parser = standard_parser(__doc__)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="only this one")
    options = parser.parse_args()
    session = Session("peak", "Share of the matrix-product peak", options.repeats)
    for geometry, sites, fit in CASES:
        if options.geometry in {None, geometry.name}:
            measure(session, geometry, sites, fit)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
