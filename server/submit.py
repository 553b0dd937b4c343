"""``consilia server submit`` and ``stop``: a job becomes a run that Flower carries.

The coordinator needs the layout of the base, but neither torch nor the base itself once it has
that: a second process loads the base and writes ``layout.json``, or the file is given.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from server.app import LAYOUT
from server.checkpoint import RunStore
from server.flower_app import start_vehicle, stop_vehicle
from server.history import RunHistory
from server.home import CoordinatorHome
from server.provisioning.folder import ConsortiumPaths
from server.records import RunStatus
from server.run_files import new_run_folder
from server.site_price import site_price
from server.vehicle import Vehicle, read_vehicle, write_vehicle
from server.watch import ENDED
from shared.adapter import TOWERS
from shared.config import JobConfig, load_job
from shared.errors import BaseModelError, ConfigError, ConsiliaError, RunDirectoryError
from shared.layout_file import layout_bytes, load_layout

_FINISHED: frozenset[RunStatus] = frozenset({"finished", "finished-incomplete"})


def submit_command(
    home: CoordinatorHome,
    job_file: Path,
    layout: Path | None,
    tell: Callable[[str], None] = print,
) -> str:
    """Make a run of a job and let Flower carry it; return its name.

    Args:
        home: The coordinator's folder.
        job_file: The job.
        layout: The base's ``layout.json``; made from the base if not given.
        tell: Is given lines that whoever submits the job should read.

    Raises:
        ConfigError: If the job cannot be used in a deployment, or the coordinator is not there.
        BaseModelError: If the base cannot be loaded.
        StorageError: If the run cannot be stored, or Flower does not take it.
    """
    job = load_job(job_file)
    check_deployable(job)
    if job.privacy.secure_aggregation and not ConsortiumPaths.of(home.folder).folder.exists():
        raise ConfigError(
            "privacy.secure_aggregation = true: sites must know one another's keys, and there is "
            f"no consortium in {home.folder}; make one with `consilia server init`, or leave it out"
        )
    home.check_answers()
    content = _layout(job_file, layout)
    if layout is not None and load_layout(layout)[0].rank != job.lora.rank:
        raise ConfigError(f"--layout {layout}: is of another rank than lora.rank = {job.lora.rank}")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / LAYOUT
        draft.write_bytes(content)
        shape, base_sha256 = load_layout(draft)
    # Which towers a site trains it says itself; here each is taken to train both.
    for line in site_price(job, shape, dict.fromkeys(TOWERS, len(job.data.sites))):
        tell(line)
    facts = {
        "engine": "deployment",
        "base": job.model.base,
        "versions": {name: importlib.metadata.version(name) for name in ("consilia", "flwr")},
    }
    with RunHistory(home.history_url) as history:
        known = {run.name for run in history.runs()}
    stem = f"{job.name}-{job.seed}"
    with (
        new_run_folder(home.runs, stem, known, "another name") as path,
        RunStore.create(path, job, base_sha256=base_sha256, facts=facts) as store,
    ):
        store.write_atomic(LAYOUT, layout_bytes(shape, base_sha256))
    write_vehicle(path, Vehicle(start_vehicle(home, path.name)))
    return path.name


def resume_command(home: CoordinatorHome, run: str) -> str:
    """Let Flower carry a run that was stopped or failed, from its last committed round on.

    Raises:
        RunDirectoryError: If there is no such run, or it is finished or under way.
        StorageError: If Flower does not take it.
    """
    path = home.run_path(run)
    home.check_answers()
    vehicle = read_vehicle(path)
    with RunHistory(home.history_url) as history:
        status = history.run(run).status if history.knows(run) else "stopped"
    if status in _FINISHED:
        raise RunDirectoryError(f"run {run}: is finished; there is nothing to go on with")
    if vehicle is not None and vehicle.wanted and status not in ENDED:
        raise RunDirectoryError(f"run {run}: is under way; consilia server status shows it")
    write_vehicle(path, Vehicle(start_vehicle(home, run)))
    return run


def stop_command(home: CoordinatorHome, run: str) -> None:
    """End a run; what is committed stays, and it can be resumed.

    Raises:
        RunDirectoryError: If there is no such run.
        ConfigError: If the coordinator is not there.
    """
    path = home.run_path(run)
    vehicle = read_vehicle(path)
    if vehicle is None:
        raise RunDirectoryError(f"run {run}: was never started; there is nothing to stop")
    home.check_answers()
    write_vehicle(path, Vehicle(vehicle.flower_run, wanted=False))  # first: nobody starts it again
    stop_vehicle(home, vehicle.flower_run)
    with RunHistory(home.history_url) as history:
        if history.knows(run) and history.run(run).status not in ENDED:
            history.finish_run(run, "stopped", "stopped by the coordinator")


def check_deployable(job: JobConfig) -> None:
    """Raise if a job asks for what only a simulation has.

    Raises:
        ConfigError: Naming the table.
    """
    for table, asked, why in (
        ("partition", job.partition.active, "every site has its own records"),
        ("attack", bool(job.attack.sites), "attackers are simulated"),
        ("proxy", job.distils, "the server has no public set"),
    ):
        if asked:
            raise ConfigError(f"[{table}]: is for `consilia simulate` only: {why}; leave it out")
    if job.privacy.for_patients and job.proxy.sha256 is None:
        raise ConfigError(
            "proxy.sha256: with differential privacy every site takes its negatives from the same "
            "public set, in its own site.toml, and refuses any other; give the set's digest, which "
            "`consilia data describe` prints"
        )
    if job.aggregate.shares_features:
        raise ConfigError(
            f"aggregate.rule = {job.aggregate.rule!r}: needs a public set at the server, which is "
            "for `consilia simulate` so far; choose another rule"
        )


def _layout(job_file: Path, given: Path | None) -> bytes:
    """Return the content of ``layout.json``.

    Raises:
        BaseModelError: If the base cannot be loaded.
        ConfigError: If the layout cannot be read.
    """
    if given is not None:
        try:
            return given.read_bytes()
        except OSError as error:
            raise ConfigError(f"--layout {given}: cannot be read: {error.strerror}") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LAYOUT
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "shared.model.describe", str(job_file), str(path)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            return path.read_bytes()
    line = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if done.returncode == BaseModelError.exit_code:
        raise BaseModelError(line)
    raise ConsiliaError(
        f"{job_file}: the layout of its base could not be made ({line}); make it where torch is "
        "installed and give it with --layout"
    )
