"""Whole rounds of the local engine, in a process of its own.

``python -m benchmarks.start_rounds`` carries out the rounds of a job over folders of records
exactly as ``consilia simulate`` does: the sites' agents, the messages, the checks, the sum, the
commit. It stops before the closing evaluation, and writes what every round took as JSON.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import client.training
from benchmarks.engine import Precision, benchmark_job
from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.records import site_name
from client.agent import SiteAgent, load_records
from client.policy import simulation_policy
from client.together import answer_together
from server.app import run_job
from server.checkpoint import RunStore
from server.events import Event
from server.history import RunHistory
from shared.adapter import AdapterLayout
from shared.config import JobConfig
from shared.errors import ConsiliaError
from simulations.cohorts import loads, samples_at_once
from simulations.grid import LocalGrid, Together
from simulations.machine import encoder_for, settle
from simulations.sites import site_settings


@dataclass(frozen=True)
class Wanted:
    """Rounds to be carried out.

    Attributes:
        base: A checkpoint.
        data: A folder of sites, as ``write_sites`` makes it.
        sites: How many of them take part.
        rounds: How many.
        fit: What every site does in a round.
        precision: Of the frozen base.
        threads: Of torch.
    """

    base: Path
    data: Path
    sites: int
    rounds: int
    fit: LocalFit
    precision: Precision = "float32"
    threads: int = 1


@dataclass
class RoundTimes:
    """What the rounds took.

    Attributes:
        seconds: Of every round, from its first message to its commit.
        cpu: CPU seconds of every round.
        training: Seconds of every round within ``train_shared``.
        training_cpu: CPU seconds of the same.
        state_bytes: A site's adapter, its gradient and both of AdamW's moments.
        ready_bytes: Peak memory of the process when the base was loaded.
        peak_bytes: Peak memory of the process at the end.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    training_cpu: list[float] = field(default_factory=list)
    state_bytes: int = 0
    ready_bytes: int = 0
    peak_bytes: int = 0


class _RoundsDoneError(ConsiliaError):
    """Ends the run before its closing phases."""


def run_rounds(wanted: Wanted, run: Path) -> RoundTimes:
    """Carry the rounds out in this process.

    Args:
        wanted: The rounds.
        run: A run directory that is not there yet.
    """
    job = _job(wanted)
    encoder = encoder_for(job, settle(job))
    times = RoundTimes(ready_bytes=_peak_bytes(), state_bytes=_state_bytes(encoder.layout))
    settings = site_settings(run, job)
    data = {site.name: load_records(site, encoder) for site in settings}
    agents = {
        site.name: SiteAgent(
            site, simulation_policy(), lambda _: encoder, lambda site, _: data[site.name]
        )
        for site in settings
    }
    together = Together(answer_together, loads(data, job), samples_at_once(encoder, job))
    digest = encoder.base_sha256
    with (
        _stopwatch() as trained,
        RunStore.create(run, job, base_sha256=digest) as store,
        RunHistory(f"sqlite:///{run / 'history.sqlite'}") as history,
        LocalGrid(agents, together) as grid,
    ):
        note = _Notebook(times, trained)
        with suppress(_RoundsDoneError):
            run_job(grid, job, store, history, encoder.layout, digest, note, _stop)
    times.peak_bytes = _peak_bytes()
    return times


@dataclass
class _Notebook:
    """Told of every event of a run, notes what a round took when it is committed."""

    times: RoundTimes
    trained: list[tuple[float, float]]
    busy: float = field(default_factory=time.process_time)

    def __call__(self, event: Event) -> None:
        if event.kind == "round-started":
            self.busy = time.process_time()
        elif event.kind == "round-committed":
            self.times.seconds.append(float(str(event.values["seconds"])))
            self.times.cpu.append(time.process_time() - self.busy)
            self.times.training.append(sum(wall for wall, _ in self.trained))
            self.times.training_cpu.append(sum(cpu for _, cpu in self.trained))
            self.trained.clear()


def _stop() -> None:
    """Take the place of what is waited for before the closing phases, and end the run there."""
    raise _RoundsDoneError("the rounds are done")


def _state_bytes(layout: AdapterLayout) -> int:
    numbers = sum(math.prod(layout.shape_of(name)) for name in layout.names())
    return 4 * 4 * numbers


def _job(wanted: Wanted) -> JobConfig:
    job = benchmark_job(wanted.base, wanted.fit, ATTENTION, precision=wanted.precision)
    names = [site_name(number) for number in range(wanted.sites)]
    return job.model_copy(
        update={
            "rounds": wanted.rounds,
            "data": job.data.model_copy(update={"folder": str(wanted.data), "sites": names}),
            "simulation": job.simulation.model_copy(update={"threads": wanted.threads}),
        }
    )


@contextmanager
def _stopwatch() -> Iterator[list[tuple[float, float]]]:
    """Note wall and CPU seconds of every call of ``train_shared``, whoever has imported it."""
    original = client.training.train_shared
    seconds: list[tuple[float, float]] = []

    def timed(*arguments: object, **keywords: object) -> object:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return original(*arguments, **keywords)  # type: ignore[arg-type]
        finally:
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))

    holders = [m for m in sys.modules.values() if getattr(m, "train_shared", None) is original]
    for module in holders:
        vars(module)["train_shared"] = timed
    try:
        yield seconds
    finally:
        for module in holders:
            vars(module)["train_shared"] = original


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rounds_in_child(wanted: Wanted) -> RoundTimes:
    """Carry the rounds out in a process of their own, so that its peak memory is theirs.

    Raises:
        CalledProcessError: If they fail; what they say is on the screen.
    """
    with TemporaryDirectory(prefix="consilia-rounds-") as folder:
        out = Path(folder) / "times.json"
        subprocess.run([*child_command(wanted), "--out", str(out)], check=True)
        return RoundTimes(**json.loads(out.read_text(encoding="utf-8")))


def child_command(wanted: Wanted) -> list[str]:
    """Return the command that carries the rounds out, without where it writes."""
    fit = wanted.fit
    return [
        *(sys.executable, "-m", "benchmarks.start_rounds"),
        *("--base", str(wanted.base), "--data", str(wanted.data)),
        *("--sites", str(wanted.sites), "--rounds", str(wanted.rounds)),
        *("--batch", str(fit.batch_size), "--steps", str(fit.steps)),
        *("--precision", wanted.precision),
        *("--threads", str(wanted.threads)),
    ]


def main() -> int:
    """Carry out what the command line says."""
    parser = argparse.ArgumentParser(description="Whole rounds of the local engine.")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    fit = LocalFit(given.batch, given.steps)
    wanted = Wanted(
        given.base, given.data, given.sites, given.rounds, fit, given.precision, given.threads
    )
    with TemporaryDirectory(prefix="consilia-run-") as folder:
        times = run_rounds(wanted, Path(folder) / "run")
    given.out.write_text(json.dumps(asdict(times)) + "\n", encoding="utf-8")
    return 0
