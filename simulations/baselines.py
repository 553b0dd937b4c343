"""What the federation is compared with: every site alone, and one model on all data.

``python -m simulations.baselines RUN`` trains both for a run directory and writes adapters to
files, whole or not at all; what is there already is not trained again.

The centralised adapter sees as many site batches as the federation does (rounds x steps x
sites). A batch is always one site's, so that negatives come from the same institution as they
do in the federation; a step adds up the gradients of up to four sites.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from client.agent import load_records
from client.data.records import SiteData
from client.device_faults import device_lost, lost_device
from client.fitting import Block, Learner, fit
from client.settings import SiteSettings
from client.state import private_folder
from client.training import Stream, fresh_adapter, lone_stream, schedule_of, train_local
from shared.adapter import TOWERS, SharedAdapter
from shared.config import JobConfig, load_job
from shared.errors import ConfigError, ConsiliaError, TrainingError
from shared.files import write_atomic
from shared.layout_file import adapter_bytes
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.seeding import derive_seed
from simulations.baselines_process import RECORDS_THERE
from simulations.cohorts import cohorts, loads, samples_at_once
from simulations.machine import encoder_for, settle
from simulations.sites import CENTRALISED_FILE, LOCAL_FILE, site_settings

PROGRESS_FILE = Path("baselines") / "progress.json"
SITES_PER_STEP = 4
WITH_PARENT = "--with-parent"
"""Argument that makes the process end with the one that started it, and wait for its word."""

_LOOK_SECONDS = 0.5

_log = logging.getLogger(__name__)


def train_centralised(
    encoder: DualEncoder, sites: Sequence[SiteData], job: JobConfig, seed: int
) -> SharedAdapter:
    """Train one adapter on all sites' records, each with the losses that fit it.

    Sites are drawn in proportion to the root of their size, without repetition within a step.

    Args:
        encoder: The base.
        sites: Those that cannot be learned from are left out.
        job: Rounds, steps, learning rate as in the federation.
        seed: Of starts, batches and shifts.

    Raises:
        TrainingError: If no site can be learned from, or the loss is not finite.
    """
    encoder.use(AdapterView())  # where a fresh adapter is, too
    streams = [
        stream
        for data in sites
        if (stream := _stream(encoder, data, job, derive_seed(seed, data.name))) is not None
    ]
    if not streams:
        raise TrainingError("too-few-records", "no site has records to learn from")
    together = min(SITES_PER_STEP, len(streams))
    steps = max(1, round(job.rounds * sum(stream.steps for stream in streams) / together))
    stack = encoder.new_stack(1)
    stack.put(0, fresh_adapter(encoder.layout, seed).factors)
    encoder.use_stack(stack, AdapterView())
    plan = _plan(streams, together, seed)
    learner = Learner(plan, steps, schedule_of(job.train, steps), TOWERS)
    (result,) = fit(encoder, stack, [learner], ("A", "B"), job.train)
    if isinstance(result, TrainingError):
        raise result
    return SharedAdapter(stack.read(0))


def _stream(encoder: DualEncoder, data: SiteData, job: JobConfig, seed: int) -> Stream | None:
    try:
        return lone_stream(encoder, data, job, seed)
    except TrainingError:
        return None


def _plan(streams: Sequence[Stream], together: int, seed: int) -> Iterator[list[Block]]:
    rng = np.random.default_rng(seed)
    chance = np.sqrt([stream.size for stream in streams])
    chance /= chance.sum()
    while True:
        chosen = rng.choice(len(streams), together, replace=False, p=chance)
        blocks = [next(streams[number].blocks) for number in chosen]
        yield [replace(block, weight=1 / together) for block in blocks]


def run_baselines(
    run: Path,
    job: JobConfig,
    settings: Sequence[SiteSettings],
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Train the job's baselines and write them beside the run.

    A site that cannot be trained alone has no file and is named in ``progress.json`` with a
    reason; the others go on.

    Args:
        run: The run directory.
        job: The job.
        settings: All sites; ``references`` says where each looks for the files.
        ready: Returns when the records are there; called once the base is loaded.

    Raises:
        DataError: If a site's records cannot be read.
        StorageError: If a file cannot be written.
    """
    device = settle(job)
    progress = _Progress(run / PROGRESS_FILE)
    wanted = job.evaluate.baselines
    paths = {site.name: site.state / LOCAL_FILE for site in settings} if "local" in wanted else {}
    missing = {name: path for name, path in paths.items() if not path.exists()}
    central = run / CENTRALISED_FILE
    pooled = "centralised" in wanted and not central.exists()
    if not missing and not pooled:
        return
    encoder = encoder_for(job, device)
    encoder_of = {site.name: encoder_for(job.at(site.name), device) for site in settings}
    ready()
    sites = {site.name: load_records(site, encoder_of[site.name]) for site in settings}
    # The longest task first, and sites in order of name: a reader of progress.json sees both.
    if pooled:
        seed = derive_seed(job.seed, "centralised")
        train = partial(train_centralised, encoder, list(sites.values()), job, seed)
        progress.attempt("centralised", central, train)
    if missing:
        # Cohorts of all sites, whichever are missing: a run that goes on gets the same bits.
        for own in dict.fromkeys(encoder_of.values()):
            names = [name for name in sorted(paths) if encoder_of[name] is own]
            for cohort in cohorts(names, loads(sites, job), samples_at_once(own, job)):
                if missing.keys() & set(cohort):
                    some = {name: sites[name] for name in cohort}
                    _train_locals(own, some, job, paths, progress)


def _train_locals(
    encoder: DualEncoder,
    sites: Mapping[str, SiteData],
    job: JobConfig,
    paths: Mapping[str, Path],
    progress: "_Progress",
) -> None:
    together = [(data, derive_seed(job.seed, "local", name)) for name, data in sites.items()]
    found = train_local(encoder, together, job)
    for name, result in zip(sites, found, strict=True):
        private_folder(paths[name].parent)  # the site's own, whoever comes first
        progress.attempt(f"local/{name}", paths[name], partial(_or_raise, result))


def _or_raise(result: SharedAdapter | TrainingError) -> SharedAdapter:
    if isinstance(result, TrainingError):
        raise result
    return result


@dataclass
class _Progress:
    """What is trained and what could not be, as a small JSON file."""

    path: Path
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, path: Path, train: Callable[[], SharedAdapter]) -> None:
        """Train and write one adapter; remember the reason if there is nothing to train on."""
        try:
            write_atomic(path, adapter_bytes(train()), mode=0o600)
            self.done.append(name)
        except TrainingError as error:
            _log.warning("baseline %s left out: %s", name, error)
            self.failed[name] = error.reason
        except (MemoryError, RuntimeError) as error:  # torch's out of memory is the latter
            if (words := lost_device(error)) is not None:
                raise device_lost(words) from None  # it can be trained elsewhere
            _log.exception("baseline %s left out", name)
            self.failed[name] = type(error).__name__
        tree = {"done": self.done, "failed": self.failed}
        write_atomic(self.path, (json.dumps(tree, indent=1) + "\n").encode())


def _await_records() -> None:
    """Wait for the records that the process which started this one is writing."""
    if sys.stdin.buffer.readline() != RECORDS_THERE:
        raise ConsiliaError("the run ended before its records were there")


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Train the baselines of a run directory; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        folders = [argument for argument in arguments if argument != WITH_PARENT]
        if len(folders) != 1:
            raise ConfigError("expected one argument: the run directory")
        run = Path(folders[0])
        job = load_job(run / "job.toml")
        if WITH_PARENT in arguments:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
            run_baselines(run, job, site_settings(run, job), _await_records)
        else:
            run_baselines(run, job, site_settings(run, job))
    except ConsiliaError as error:
        _log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    # All is written, and taking base and records apart piece by piece takes a second, for which
    # the run would wait.
    os._exit(code)
