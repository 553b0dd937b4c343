"""The local engine against Flower's simulation engine (Ray): the same job, run by run.

Ten sites, four steps of batch 8, six rounds of FedAvg; Flower has two actors of one CPU, the
engine as many threads. Every run is a process of its own, so the whole run holds the imports, the
start of Ray, loading and reading; the steady round is the median of the rounds after the first.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.agreement import agreement
from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.geometry import SMALL, Geometry, write_base
from benchmarks.machine import cores
from benchmarks.records import write_sites
from benchmarks.rounds import Wanted, child_command
from benchmarks.schema import Arm, Row, Target
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, arm_of, at_least, interleave, ratio_of

ACTORS: Final = 2
WHOLE: Final = at_least(8.0)
STEADY: Final = at_least(3.2)
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """The job."""

    geometry: Geometry
    sites: int
    fit: LocalFit
    rounds: int


JOB: Final = Case(SMALL, sites=10, fit=LocalFit(8, 4), rounds=6)


@dataclass
class _Runs:
    """A command that runs the job, and what the rounds of all its runs took."""

    name: str
    command: Sequence[str]
    folder: Path
    rounds: list[list[float]] = field(default_factory=list)

    def work(self) -> None:
        """Run the job once; Ray's processes outlive their parents, so CPU time is not known."""
        out = self.folder / "rounds.json"
        done = subprocess.run(
            [*self.command, "--out", str(out)],
            check=False,
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: exit {done.returncode}\n{done.stderr[-2000:]}")
        self.rounds.append(json.loads(out.read_text(encoding="utf-8"))["seconds"])
        out.unlink()

    def steady(self) -> list[float]:
        """Return the median round of every run, the first round left out."""
        return [median(seconds[1:]) for seconds in self.rounds]

    def first(self) -> float:
        """Return the median of the runs' first rounds."""
        return median(seconds[0] for seconds in self.rounds)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def measure(session: Session, case: Case) -> None:
    """Measure the job, if Ray is there."""
    name = (
        f"{case.geometry.name}, {case.sites} sites x {case.fit.steps} steps x batch "
        f"{case.fit.batch_size}, {case.rounds} rounds"
    )
    if importlib.util.find_spec("ray") is None:
        session.leave_out(name, "Ray is not installed; `make setup-ray` installs it")
        return
    with TemporaryDirectory(prefix="consilia-flower-") as folder:
        place = Path(folder)
        base, data = place / "base", place / "data"
        base.mkdir()
        write_base(base, case.geometry)
        write_sites(data, case.geometry, case.sites, case.fit.batch_size * case.fit.steps)
        gates = agreement(base, case.geometry, ATTENTION, case.fit.batch_size)
        runs = _all_runs(base, data, case, place)
        contenders = [
            Contender(f"{run.name}, whole run", run.work, 1, ACTORS if run is runs[0] else 1)
            for run in runs
        ]
        arms = interleave(contenders, session.repeats, session.watch, warm_ups=0)
    session.add(_row(name, runs, arms, contenders).model_copy(update={"gates": gates}))


def _all_runs(base: Path, data: Path, case: Case, place: Path) -> list[_Runs]:
    fit = case.fit
    flower = [
        *(sys.executable, "-m", "benchmarks.flower_job"),
        *("--base", str(base), "--data", str(data), "--clients", str(case.sites)),
        *("--rounds", str(case.rounds), "--batch", str(fit.batch_size)),
        *("--steps", str(fit.steps), "--actors", str(ACTORS)),
    ]
    threads = min(ACTORS, cores())
    wanted = Wanted(base, data, case.sites, case.rounds, fit, "auto", threads)
    exact = Wanted(base, data, case.sites, case.rounds, fit, "float32", threads)
    return [
        _Runs("Flower with Ray", flower, place),
        _Runs("engine", child_command(wanted), place),
        _Runs("engine, fp32", child_command(exact), place),
    ]


def _row(
    name: str, runs: Sequence[_Runs], arms: dict[str, Arm], contenders: Sequence[Contender]
) -> Row:
    steady = [
        arm_of(Contender(f"{run.name}, steady round", run.work, 1), run.steady()) for run in runs
    ]
    whole = [arms[contender.name] for contender in contenders]
    ratios = []
    for kind, timed, target in (("whole run", whole, WHOLE), ("steady round", steady, STEADY)):
        for run, ours in zip(runs[1:], timed[1:], strict=True):
            wanted: Target | None = target if run.name == "engine" else None
            values = [a / b for a, b in zip(timed[0].wall, ours.wall, strict=True)]
            ratios.append(ratio_of(f"Flower / {run.name}, {kind}", values, wanted))
    numbers = {f"{run.name}, first round, seconds": round(run.first(), 3) for run in runs}
    return Row(name=name, arms=[*whole, *steady], ratios=ratios, numbers=numbers)


def main() -> int:
    """Run the benchmark."""
    options = standard_parser(__doc__).parse_args()
    title = "Against Flower's simulation engine (Ray)"
    session = Session("flower_ray", title, options.repeats)
    measure(session, JOB)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
