"""``consilia compare``: from a job and names of methods to a table, a page and files."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from shared.config import JobConfig
from shared.files import write_atomic
from shared.page.numbers import plural
from simulations.compare.methods import parse_methods
from simulations.compare.model import MethodComparison
from simulations.compare.page import render
from simulations.compare.plan import Plan, make_plan, parse_rates
from simulations.compare.run import carry_out
from simulations.compare.table import make_rows
from simulations.compare.text import terminal_table, to_csv, to_markdown
from simulations.compare.words import sentences
from simulations.machine import termination_like_interrupt, versions

_COLUMNS = 112


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        job: The job file.
        methods: Names with commas between them.
        seeds: How many.
        rates: The learning-rate grid, with commas; the job's times 1/2, 1 and 2 if not given.
        jobs: Runs at a time; one per core if not given.
        overrides: Values that replace the job's, by dotted key.
        out: Folder of the comparison.
        markdown: A file to write the table to, for documents.
        command: The command, for the record.
        as_json: Print the comparison as one JSON object.
    """

    job: Path
    methods: str
    seeds: int
    rates: str | None
    jobs: int | None
    overrides: Mapping[str, object]
    out: Path | None
    markdown: Path | None
    command: str
    as_json: bool


def compare_command(wishes: Wishes) -> int:
    """Carry out ``consilia compare``; return the exit code."""
    console = Console(stderr=wishes.as_json)
    if not console.is_terminal:
        console = Console(stderr=wishes.as_json, width=_COLUMNS)
    given = {key: value for key, value in wishes.overrides.items() if value is not None}
    methods, rates = parse_methods(wishes.methods), parse_rates(wishes.rates)
    plan = make_plan(wishes.job, given, methods, rates, wishes.seeds, wishes.out)
    jobs = wishes.jobs or os.cpu_count() or 1
    console.print(_headline(plan, jobs), highlight=False, markup=False)
    with termination_like_interrupt():
        comparison = compare(plan, jobs, console, wishes.command)
    _write(plan, comparison, wishes.markdown)
    if wishes.as_json:
        sys.stdout.write(comparison.model_dump_json(indent=1) + "\n")
    else:
        _print(plan, comparison, console)
    return 1 if comparison.best is None else 0 if comparison.complete else 3


def compare(plan: Plan, jobs: int, console: Console, command: str) -> MethodComparison:
    """Run what is missing of a plan and return the comparison.

    Args:
        plan: What is compared.
        jobs: Runs at a time.
        console: Where progress is shown.
        command: For the record.
    """
    choices, scores = carry_out(plan, jobs, console)
    job = plan.job
    main, margin = job.evaluate.main, job.evaluate.margin
    of_seed = {(name, seed): found for (name, _, seed), found in scores.items()}
    rows, best = make_rows(plan.methods, choices, of_seed, plan.seeds, main, margin)
    sites = sorted({site for found in scores.values() for site in found.own})
    return MethodComparison(
        name=job.name,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        job_sha256=plan.digest(),
        main_metric=main,
        margin=margin,
        seeds=list(plan.seeds),
        tuning_seed=plan.tuning_seed if len(plan.rates) > 1 else None,
        rates=list(plan.rates),
        rounds=job.rounds,
        steps=_steps(job),
        personal_steps=job.personalize.steps,
        sites=sites,
        phantoms=job.data.folder is None,
        best=best,
        complete=all(found.reason is None for found in scores.values()),
        sentences=sentences(rows, best, main, len(plan.seeds)),
        rows=rows,
        facts={"Versions": ", ".join(f"{n} {v}" for n, v in versions().items())},
    )


def _steps(job: JobConfig) -> str:
    if job.train.steps is not None:
        return plural(job.train.steps, "step")
    return f"{job.train.epochs:g} epochs"


def _headline(plan: Plan, jobs: int) -> str:
    names = ", ".join(plan.rows)
    runs = len(plan.tuning()) + len(plan.rows) * len(plan.seeds)
    return (
        f"{plan.job.name}: {names}\n{plural(len(plan.seeds), 'seed')}, "
        f"{plural(len(plan.rates), 'learning rate')}: {plural(runs, 'run')}, {jobs} at a time, "
        f"in {plan.out}"
    )


def _write(plan: Plan, comparison: MethodComparison, markdown: Path | None) -> None:
    tree = comparison.model_dump_json(indent=1) + "\n"
    write_atomic(plan.out / "comparison.csv", to_csv(comparison).encode())
    write_atomic(plan.out / "comparison.html", render(comparison).encode())
    write_atomic(plan.out / "comparison.json", tree.encode())
    if markdown is not None:
        write_atomic(markdown, to_markdown(comparison).encode())


def _print(plan: Plan, comparison: MethodComparison, console: Console) -> None:
    console.print(terminal_table(comparison))
    for row in comparison.rows:
        for note in row.notes if "own" in row.cells else []:
            console.print(f"{row.name}: {note}", highlight=False, markup=False)
    for suffix in ("json", "csv"):
        path = plan.out / f"comparison.{suffix}"
        console.print(f"{suffix.upper():<8} {path}", highlight=False, markup=False)
    say = f"Next     open {plan.out / 'comparison.html'}"
    if comparison.best and len(plan.seeds) < 3:
        say += "; more seeds give intervals: the same command with --seeds 3 or more"
    elif comparison.best:
        method = next(each for each in plan.methods if each.name == comparison.best)
        row = next(row for row in comparison.rows if row.name == comparison.best)
        values = {**method.settings, "train.learning_rate": f"{row.rate:g}"}
        best = " ".join(f"--set {key}={value}" for key, value in values.items())
        say += f"; consilia simulate {shlex.quote(str(plan.path))} {best}"
    console.print(say, highlight=False, markup=False, soft_wrap=True)
