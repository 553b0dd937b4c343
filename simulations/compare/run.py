"""Carrying out a plan: what is missing is run, some runs side by side, and all can be resumed.

A run is done when its ``scores.json`` is there and belongs to the very job; one that was
interrupted goes on from its last committed round and ends with the same bits.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console

from shared.config import JobConfig
from shared.errors import (
    ConfigError,
    ConsiliaError,
    InterruptedRunError,
    QuorumError,
    RunDirectoryError,
)
from shared.files import storage_errors, write_atomic
from shared.metrics import METRICS
from shared.results import Results
from simulations.baselines import run_baselines
from simulations.compare.choice import Choice, Tried, choose
from simulations.compare.plan import Plan, Task
from simulations.compare.progress import Steps
from simulations.compare.scores import (
    Scores,
    load_scores,
    save_scores,
    score_federation,
    score_reference,
)
from simulations.compare.workers import Workers, stoppable
from simulations.machine import encoder_for, settle
from simulations.simulate import simulate
from simulations.sites import PHANTOM_FOLDER, site_settings, write_partition, write_phantoms

PLAN_FILE = "plan.json"

Key = tuple[str, float, int]
"""Row, rate and seed of a run."""


def carry_out(
    plan: Plan, jobs: int, console: Console
) -> tuple[dict[str, Choice], dict[Key, Scores]]:
    """Run what is missing of a plan.

    Args:
        plan: What is compared.
        jobs: Runs at a time; 1 runs them in this process.
        console: Where progress is shown.

    Returns:
        The rate of every row, and the scores of every compared run.

    Raises:
        RunDirectoryError: If the folder holds another comparison.
        InputError: If data or base cannot be used.
        InterruptedRunError: After Ctrl-C; what is done is kept.
    """
    site_settings(plan.data_folder(plan.seeds[0]), plan.job)  # refuses what is not there
    claim_folder(plan)
    tuning = plan.tuning()
    count = len(tuning) + len(plan.rows) * len(plan.seeds)
    try:
        with Steps(console, count) as steps, Workers(jobs) as workers:
            _prepare(plan, workers)
            tried = _run_missing(tuning, workers, steps)
            choices = {name: _choice(plan, name, tried) for name in plan.rows}
            compared = plan.compared({name: choice.rate for name, choice in choices.items()})
            steps.skip(count - len(tuning) - len(compared))
            return choices, _run_missing(compared, workers, steps)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"{plan.out}: what is done is kept; go on with the same command"
        ) from None
    except BrokenProcessPool:
        raise ConsiliaError(
            "a run's process ended without a word, as one does that needs more memory than there "
            "is; go on with the same command and fewer --jobs"
        ) from None


def claim_folder(plan: Plan) -> None:
    """Make the comparison's folder its own, or check that it is.

    Raises:
        InputError: If it holds another comparison, something else, or is a file.
    """
    path = plan.out / PLAN_FILE
    content = {"version": 1, "digest": plan.digest(), "job": plan.job.name}
    if plan.out.exists() and not plan.out.is_dir():
        raise ConfigError(f"--out {plan.out}: is a file; expected a folder for the comparison")
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = {}
        if found.get("digest") != content["digest"]:
            raise RunDirectoryError(
                f"--out {plan.out}: holds a comparison of another job ({found.get('job')}, or "
                f"other values of it) than {plan.path}; choose another --out"
            )
        return
    if plan.out.exists() and any(plan.out.iterdir()):
        raise RunDirectoryError(
            f"--out {plan.out}: is not empty and holds no comparison; choose another --out"
        )
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def _prepare(plan: Plan, workers: Workers) -> None:
    """Write the synthetic sites of every seed, once for all runs."""
    if plan.job.data.folder is not None:
        return
    seeds = [*([plan.tuning_seed] if plan.tuning() else []), *plan.seeds]
    worlds = [(plan.data_folder(s), plan.job.model_copy(update={"seed": s})) for s in seeds]
    for _ in workers.each(_write_data, worlds):
        pass


def _write_data(world: tuple[Path, JobConfig]) -> None:
    with stoppable():
        write_phantoms(*world)


def _run_missing(tasks: Sequence[Task], workers: Workers, steps: Steps) -> dict[Key, Scores]:
    found: dict[Key, Scores] = {}
    missing: list[Task] = []
    for task in tasks:
        scores = load_scores(task)
        if scores is None:
            missing.append(task)
        else:
            found[task.method, task.rate, task.seed] = scores
            steps.done(task, scores, again=True)
    for task, scores in workers.each(carry_out_task, missing):
        found[task.method, task.rate, task.seed] = scores
        steps.done(task, scores, again=False)
    return found


def carry_out_task(task: Task) -> Scores:
    """Run one task, or go on with it, and score it; its folder then holds ``scores.json``.

    A federation in which too few sites could train, as when losses are not finite, is a result:
    its scores say why there are no numbers. They are not kept, so that the same command tries
    again.

    Raises:
        InputError: If data or base cannot be used; the method's name stands before it.
    """
    with stoppable():
        try:
            _share_data(task)
            found = _reference(task) if task.reference else _federation(task)
        except QuorumError as error:
            return Scores(job_sha256=task.job.digest(), reason=str(error))
        except ConfigError as error:
            raise ConfigError(f"{task.method}: {error}") from None
    return save_scores(task, found)


def _federation(task: Task) -> Scores:
    results = finished(task)
    if results is None:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            results = simulate(task.folder, task.job, Console(file=nowhere))
    return score_federation(task, results, encoder_for(task.job, settle(task.job)))


def _reference(task: Task) -> Scores:
    started = time.monotonic()
    encoder = encoder_for(task.job, settle(task.job))
    write_partition(task.folder, task.job)
    run_baselines(task.folder, task.job, site_settings(task.folder, task.job))
    return score_reference(task, encoder, started)


def finished(task: Task) -> Results | None:
    """Return a run's results if it has reached its end and was of this very job."""
    try:
        found = Results.model_validate_json((task.folder / "results.json").read_bytes())
    except (OSError, ValueError):
        return None
    done = found.status in ("finished", "finished-incomplete")
    return found if done and found.job_sha256 == task.job.digest() else None


def _share_data(task: Task) -> None:
    """Let a run find its seed's synthetic sites where all methods of the seed find them."""
    link = task.folder / PHANTOM_FOLDER
    if task.job.data.folder is not None or link.is_symlink():
        return
    target = task.data / PHANTOM_FOLDER
    with storage_errors(f"{link}: could not be made"):
        task.folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, task.folder), target_is_directory=True)


def _choice(plan: Plan, name: str, tried: Mapping[Key, Scores]) -> Choice:
    if len(plan.rates) == 1:
        return Choice(plan.rates[0], ())
    # The base is the same for all; a federation that lost a site at once has not measured it.
    bases = (scores.base_loss for scores in tried.values() if scores.base_loss is not None)
    base = next(bases, None)
    found = [(rate, tried[name, rate, plan.tuning_seed]) for rate in plan.rates]
    return choose(
        [
            Tried(rate, scores.base_loss or base, scores.loss, scores.base_level, scores.level)
            for rate, scores in found
        ],
        lower_is_better=METRICS[plan.job.evaluate.main].direction == "lower",
    )
