"""``consilia simulate``: from a job to results and a report, on this machine.

job → sites → encoder → run directory → (baselines in a second process) → the federation over
Flower's Grid → results → report. Every step is a function of the one before it; what is on disk
is enough to go on after an interruption at any moment.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console

from client.agent import SiteAgent
from client.data.load import load_site
from client.data.records import SiteData
from client.patient_privacy import with_simulated_budget
from client.policy import simulation_policy
from client.prefix_cache import why_recomputed
from client.settings import SiteSettings
from client.together import answer_together
from server.app import LAYOUT, run_job
from server.checkpoint import RunStore
from server.history import PATIENT, RunHistory
from server.proxy.pairs import ProxyPairs
from server.proxy.step import Distiller
from server.rounds import RunOutcome
from server.run_files import new_run_folder
from server.site_noise import SiteNoise, check_sites
from server.site_price import site_price
from shared.adapter import TOWERS, AdapterLayout, Tower
from shared.config import AttackKind, JobConfig, load_job
from shared.errors import (
    BaseModelError,
    ConfigError,
    ConsiliaError,
    DataError,
    DataProblem,
    InterruptedRunError,
    RunDirectoryError,
)
from shared.layout_file import layout_bytes
from shared.memory import give_memory_back
from shared.model.encoder import DualEncoder
from shared.page.numbers import duration, size
from shared.results import Results
from shared.security.secagg.session import LEAST_SITES
from simulations.attackers import with_attackers
from simulations.baselines_process import BaselinesProcess
from simulations.cohorts import loads, samples_at_once
from simulations.features import PublicSets, encoders, with_public_set, write_beginning
from simulations.flower_engine import check_ray
from simulations.flower_grid import run_flower
from simulations.grid import LocalGrid, Together
from simulations.histories import history_url, known_runs
from simulations.log import LOG, log_file
from simulations.machine import (
    DeviceWatch,
    devices,
    encoder_for,
    settle,
    termination_like_interrupt,
    versions,
)
from simulations.progress import RunProgress
from simulations.proxy import distiller, read_proxy, write_proxy
from simulations.report import write_report
from simulations.report.privacy import claim_of, promised
from simulations.results_table import results_table
from simulations.scoring import score_run
from simulations.secure import SimulatedConsortium
from simulations.sites import readable, site_settings, write_partition, write_phantoms


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        job: The job file; ``None`` for the built-in default.
        overrides: Values that replace the job's, by dotted key.
        sites: How many synthetic sites.
        out: Folder that holds runs.
        resume: A run to go on with: its name in ``out``, or its folder.
        as_json: Print the results as one JSON object.
    """

    job: Path | None
    overrides: Mapping[str, object]
    sites: int | None
    out: Path
    resume: str | None
    as_json: bool


def default_job(*, own_data: bool = False) -> Path:
    """Return the built-in job file, for phantoms or for records of the user's own."""
    name = "own-data.toml" if own_data else "default.toml"
    return Path(str(files("simulations") / "jobs" / name))


def simulate_command(wishes: Wishes) -> int:
    """Carry out ``consilia simulate``; return the exit code."""
    console = Console(stderr=wishes.as_json)
    if not console.is_terminal:
        console = Console(stderr=wishes.as_json, width=100)  # a log file has no width of its own
    with _new(wishes) if wishes.resume is None else _resumed(wishes) as (run, job):
        try:
            with termination_like_interrupt():
                results = simulate(run, job, console)
                report = write_report(run)
        except KeyboardInterrupt:
            if not (run / "manifest.json").exists():
                raise InterruptedRunError("nothing was written") from None
            raise InterruptedRunError(
                f"{run}: what is committed is intact; go on with --resume {run}"
            ) from None
    if wishes.as_json:
        sys.stdout.write(results.model_dump_json(indent=1) + "\n")
    else:
        _print_summary(console, results, run, report)
    return results.exit_code


@contextmanager
def _new(wishes: Wishes) -> Iterator[tuple[Path, JobConfig]]:
    """Read the job and make a folder whose name neither the disk nor the history had yet."""
    overrides = dict(wishes.overrides) | {"data.phantom_sites": wishes.sites}
    built_in = default_job(own_data=overrides.get("data.folder") is not None)
    job = load_job(wishes.job or built_in, overrides)
    if wishes.sites and job.data.folder:
        raise ConfigError("--sites makes synthetic sites; it cannot be used with data of your own")
    if wishes.out.exists() and not wishes.out.is_dir():
        raise ConfigError(f"--out {wishes.out}: is a file; expected a folder that holds runs")
    stem = f"{job.name}-{job.seed}"
    known = known_runs(wishes.out)
    with new_run_folder(wishes.out, stem, known, "another --out") as run:
        yield run, job


@contextmanager
def _resumed(wishes: Wishes) -> Iterator[tuple[Path, JobConfig]]:
    """Find the run to go on with."""
    given = Path(str(wishes.resume))
    in_out = wishes.out / given
    run = given if (given / "manifest.json").exists() or not in_out.exists() else in_out
    if not wishes.resume or not run.exists():
        raise RunDirectoryError(
            f"--resume {wishes.resume}: no such run, neither as a folder nor in {wishes.out}"
        )
    changed = ["the job file"] if wishes.job else ["--sites"] if wishes.sites else []
    changed += sorted(key for key, value in wishes.overrides.items() if value is not None)
    if changed:
        raise ConfigError(f"--resume goes on with the run's own job; leave out {changed[0]}")
    with RunStore.open(run, lock=False) as store:
        job = store.job
    yield run, job


def simulate(run: Path, job: JobConfig, console: Console) -> Results:
    """Run a job on this machine, or go on with it where it stopped.

    Args:
        run: The run directory; new, or one that ``simulate`` made.
        job: The job.
        console: Where progress is shown.

    Raises:
        InputError: If job, data, base or run directory cannot be used; nothing is written.
        InterruptedRunError: After Ctrl-C; what is committed is intact.
        QuorumError: If too few sites answered.
        TrainingError: If a device stopped working; what is committed is intact.
    """
    start = time.monotonic()
    # Bad input ends here, before anything is written.
    if job.simulation.engine == "flower":
        check_ray()
    device = settle(job)
    encoder = encoder_for(job, device)
    settings = site_settings(run, job)
    encoder_of = encoders(job, settings, device)
    job = _with_samples(job, {encoder, *encoder_of.values()})
    job = with_public_set(run, job, settings, encoder)
    quorum = job.aggregate.quorum or 0
    if quorum > len(settings):
        raise ConfigError(f"aggregate.quorum = {quorum}: there are only {len(settings)} sites")
    _check_sizes(job, len(settings), encoder.layout)
    known = {site.name for site in settings}
    for table, named in (("attack.sites", job.attack.sites), ("lora.ranks", job.lora.ranks)):
        unknown = sorted(named.keys() - known)
        if unknown:
            names = ", ".join(site.name for site in settings)
            raise ConfigError(f"{table} names {unknown[0]!r}; expected one of the sites: {names}")
    data: dict[str, SiteData] = {}
    if job.data.folder is not None:
        with readable(run, job, settings) as sites:
            data = _load_all(sites, encoder_of)
    pairs: ProxyPairs | None = None
    if job.distils and job.proxy.folder is not None:
        pairs = read_proxy(run, job, settings, encoder)
    digests = {name: site.sha256() for name, site in data.items()}
    proxy = {} if pairs is None else {"proxy": pairs.sha256()}
    with (
        _store(run, job, encoder, settings, digests, proxy) as store,
        log_file(run / LOG),
        RunHistory(history_url(run), PATIENT) as history,
    ):
        store.write_atomic(LAYOUT, layout_bytes(encoder.layout, encoder.base_sha256))
        console.print(_headline(run, job, settings, encoder), highlight=False)
        if (remark := why_recomputed(encoder, job.train)) is not None:
            console.print(remark, highlight=False)
        with BaselinesProcess(run, job) as baselines:
            write_phantoms(run, job)
            write_partition(run, job)
            write_proxy(run, job)
            baselines.records_are_there()
            with RunProgress(console, job.rounds) as progress:
                data = data or _load_all(settings, encoder_of)
                for line in site_price(job, encoder.layout, _training(data)):
                    progress.say(line)
                distil, public = None, PublicSets()
                if job.distils:
                    pairs = pairs or read_proxy(run, job, settings, encoder)
                    distil = distiller(job, pairs, str(encoder.device))
                if job.aggregate.shares_features:
                    write_beginning(store, encoder, public(settings[0], encoder))
                federation = _Federation(
                    run, job, settings, data, encoder, store, history, distil, public
                )
                outcome = federation.carry_out(baselines, progress)
        with _early_end(history, store.run):
            return score_run(store, settings, data, encoder, outcome, start)


def _training(data: Mapping[str, SiteData]) -> dict[Tower, int]:
    """Return how many sites train each tower."""
    return {tower: sum(site.examples(tower) > 0 for site in data.values()) for tower in TOWERS}


def _check_sizes(job: JobConfig, sites: int, layout: AdapterLayout) -> None:
    """Raise ``ConfigError`` if there are too few sites for the job, or a size does not fit."""
    rule = job.aggregate
    if job.privacy.secure_aggregation and sites < LEAST_SITES:
        raise ConfigError(
            f"privacy.secure_aggregation = true: there are only {sites} sites, and of two each "
            f"learns the other's change from the sum; expected at least {LEAST_SITES}"
        )
    if job.privacy.for_sites:
        check_sites(job, sites)
        SiteNoise.of(job, layout)
    if rule.least_sites > sites:
        raise ConfigError(
            f"aggregate.combine = '{rule.combine}' needs {rule.least_sites} sites to withstand "
            f"hostile = {rule.hostile}, and there are only {sites}; lower hostile, or use "
            "'geometric-median'"
        )
    if job.personalize.fits and job.personalize.rank > layout.largest_rank:
        raise ConfigError(
            f"personalize.rank = {job.personalize.rank} is larger than the smallest adapted layer "
            f"of this base; expected at most {layout.largest_rank}"
        )


def _with_samples(job: JobConfig, encoders_in_use: Iterable[DualEncoder]) -> JobConfig:
    """Write into the run's job how many samples a step has.

    Cohorts, and so the run's bits, then stay the same if it is resumed.
    """
    samples = min(samples_at_once(encoder, job) for encoder in encoders_in_use)
    own = job.simulation.model_copy(update={"samples_at_once": samples})
    return job.model_copy(update={"simulation": own})


@contextmanager
def _early_end(history: RunHistory, run: str) -> Iterator[None]:
    """Let the history say so if a run ends between its last phase and its results."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        reason = str(error) if isinstance(error, ConsiliaError) else type(error).__name__
        history.be_brief()
        with suppress(ConsiliaError):
            history.finish_run(run, "stopped" if stopped else "failed", f"no results: {reason}")
        raise


def _headline(
    run: Path, job: JobConfig, settings: Sequence[SiteSettings], encoder: DualEncoder
) -> str:
    records = "phantoms" if job.data.folder is None else job.data.folder
    others = f" and {len(set(job.model.bases.values()))} more" if job.model.bases else ""
    return (
        f"{job.name}: {len(settings)} sites ({records}), {job.rounds} rounds of "
        f"{job.aggregate.rule}, base {encoder.base_name}{others}, on {encoder.device}\nRun {run}"
    )


def _store(
    run: Path,
    job: JobConfig,
    encoder: DualEncoder,
    settings: Sequence[SiteSettings],
    digests: Mapping[str, str],
    proxy: Mapping[str, str],
) -> RunStore:
    """Open the run directory, or make it; base and records must be those that it began with."""
    if (run / "manifest.json").exists():
        store = RunStore.open(run, job)
        if store.base_sha256 != encoder.base_sha256:
            store.close()
            raise BaseModelError(
                f"{encoder.folder}: the base has sha256 {encoder.base_sha256}, the run began with "
                f"{store.base_sha256}; put that base back, or start a new run"
            )
        changed = sorted(n for n, d in digests.items() if store.manifest["data"].get(n) != d)
        if changed:
            store.close()
            raise RunDirectoryError(
                f"{run}: the records of {changed[0]} are not those that the run began with, so its "
                "test records may have been trained on; put them back, or start a new run"
            )
        if proxy and store.manifest.get("proxy") != proxy["proxy"]:
            store.close()
            raise RunDirectoryError(
                f"{run}: the public set in {job.proxy.folder} is not the one that the run began "
                "with; put that back, or start a new run"
            )
        return store
    facts = {
        **proxy,
        "data": dict(digests),
        "engine": job.simulation.engine,
        "threads": job.simulation.threads,
        "device": str(encoder.device),
        "base": encoder.base_name,
        "versions": versions(),
        "sites": [site.name for site in settings],
    }
    return RunStore.create(run, job, base_sha256=encoder.base_sha256, facts=facts)


def _load_all(
    settings: Sequence[SiteSettings], encoder_of: Mapping[str, DualEncoder]
) -> dict[str, SiteData]:
    """Load every site; problems of all sites are reported together."""
    data: dict[str, SiteData] = {}
    broken: list[DataError] = []
    problems: list[DataProblem] = []
    for site in settings:
        try:
            # A run that has no folder yet must not get one before its records are sound.
            cache = site.pixels if site.state.exists() else None
            encoder = encoder_of[site.name]
            data[site.name] = load_site(
                site.source, encoder.to_pixels, cache, encoder.preprocessing
            )
        except DataError as error:
            broken.append(error)
            # Rows are those of a site's own table, so a common list has to say whose.
            problems += [replace(p, message=f"{site.name}: {p.message}") for p in error.problems]
    if len(broken) == 1:
        raise broken[0]
    if broken:
        raise DataError(f"{len(broken)} sites have problems; the first: {broken[0]}", problems)
    return data


@dataclass(frozen=True)
class _Federation:
    """Everything that the rounds need."""

    run: Path
    job: JobConfig
    settings: Sequence[SiteSettings]
    data: Mapping[str, SiteData]
    encoder: DualEncoder
    store: RunStore
    history: RunHistory
    distiller: Distiller | None
    public: PublicSets

    def carry_out(self, baselines: BaselinesProcess, progress: RunProgress) -> RunOutcome:
        """Run all rounds and the closing phases over the job's engine."""
        coordinate = partial(
            run_job,
            job=self.job,
            store=self.store,
            history=self.history,
            layout=self.encoder.layout,
            base_sha256=self.encoder.base_sha256,
            on_event=DeviceWatch(progress, self.run, self.job.rounds),
            before_evaluation=lambda: baselines.wait(progress.say),
            distiller=self.distiller,
        )
        load, samples = loads(self.data, self.job), samples_at_once(self.encoder, self.job)
        if self.job.simulation.engine == "flower":
            return run_flower(self.settings, self.job, coordinate, load, samples)
        where = devices(self.encoder.device.type)
        consortium = None
        if self.job.privacy.secure_aggregation:
            consortium = SimulatedConsortium([site.name for site in self.settings])
            coordinate = partial(coordinate, members=consortium.members)
        lanes = {site.name: number % len(where) for number, site in enumerate(self.settings)}
        agents = {s.name: self._agent(s, where[lanes[s.name]], consortium) for s in self.settings}
        hostile = self.job.attack.sites
        answer = partial(_answer, hostile=hostile, threads=lambda: baselines.threads)
        with LocalGrid(agents, Together(answer, load, samples, lanes)) as grid:
            return coordinate(grid)

    def _agent(
        self, site: SiteSettings, device: str, consortium: SimulatedConsortium | None
    ) -> SiteAgent:
        """Return a site's agent; all agents on a device share its encoder."""
        policy = with_simulated_budget(simulation_policy(), self.job)
        return SiteAgent(
            site,
            policy,
            lambda job: encoder_for(job, device),
            lambda settings, _: self.data[settings.name],
            self.public,
            sums=consortium.sums(site, policy) if consortium else None,
        )


def _answer(
    asked: Sequence[tuple[SiteAgent, bytes]],
    hostile: Mapping[str, AttackKind],
    threads: Callable[[], int],
) -> list[bytes]:
    torch.set_num_threads(threads())  # here, as it counts for the thread that calls it
    answers = answer_together(asked)
    give_memory_back()
    return with_attackers(answers, hostile)


def _print_summary(console: Console, results: Results, run: Path, report: Path) -> None:
    """The table, what it cost, and what to do next."""
    console.print(results_table(results))
    cost = (
        f"{results.rounds} rounds, {duration(results.seconds)}, "
        f"{size(results.bytes_up)} up, {size(results.bytes_down)} down, "
        f"peak memory {size(results.peak_memory_bytes)}, adapter {results.adapter_sha256[:12]}"
    )
    console.print(cost, highlight=False)
    if promised(results):
        console.print(f"{claim_of(results)} (manifest.json says what it covers)", highlight=False)
    if results.reason:
        console.print(f"Not every contribution was in: {results.reason}", highlight=False)
    console.print(f"\nResults  {run / 'results.json'}", highlight=False)
    console.print(f"Report   {report}", highlight=False)
    own = " --site SITE" if results.aggregation.rule == "creamfl" else ""  # nothing is shared
    console.print(f"Next     open the report; consilia export {run}{own} --to DIR", highlight=False)
