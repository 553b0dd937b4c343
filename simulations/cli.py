"""The command ``consilia``; every subcommand loads what it needs only when it runs."""

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli import app as client_app
from server.cli import app as server_app
from shared.errors import ConsiliaError, DataError, InterruptedRunError
from simulations.data_cli import AsJson, Columns, SiteColumn, console, mapping
from simulations.data_cli import app as data_app
from simulations.startup import LANE

if TYPE_CHECKING:
    pass

TRACEBACK = "CONSILIA_TRACEBACK"
"""Environment variable that shows the traceback of an error that should not happen."""

_INTERRUPTED = 130
"""What Typer returns for Ctrl-C; no exit code of ours."""

app = typer.Typer(
    name="consilia",
    help="Train one image-text model over many institutions without moving a record.\n\n"
    "Start with:  consilia simulate      eight synthetic hospitals, a table and a report",
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # Click does it already
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(server_app, name="server")
app.add_typer(client_app, name="client")

JobFile = Annotated[
    Path | None,
    typer.Argument(metavar="[JOB.toml]", help="The job; without one, the built-in default."),
]


@app.command()
def simulate(
    job: JobFile = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of site folders, or one table with --site-column."),
    ] = None,
    sites: Annotated[
        int | None, typer.Option(min=1, help="How many synthetic sites to make.")
    ] = None,
    site_column: SiteColumn = None,
    column: Columns = None,
    image_only: Annotated[
        list[str] | None, typer.Option(help="Ignore this site's texts; may be repeated.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, instead of the job's.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="local (default) or flower (Ray, several GPUs).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, instead of the job's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one key, such as --set aggregate.rule=ffa."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a federation on this machine, from data to a report.

    Without arguments, eight synthetic hospitals train a shared image-text encoder and a
    personal one each. Exit codes: 0 done, 1 failed, 2 bad input, 3 finished without every site.
    """
    from simulations.startup import loading

    with loading():
        from simulations.simulate import Wishes, simulate_command

    overrides: dict[str, object] = {
        "rounds": rounds,
        "seed": seed,
        "simulation.engine": engine,
        "simulation.device": device,
        "data.folder": str(data.resolve()) if data is not None else None,
        "data.site_column": site_column,
        "data.columns": mapping(column) or None,
        "data.image_only": image_only or None,
        **_settings(setting),
    }
    wishes = Wishes(
        job=job, overrides=overrides, sites=sites, out=out, resume=resume, as_json=as_json
    )
    raise typer.Exit(simulate_command(wishes))


def _settings(items: list[str] | None) -> dict[str, object]:
    """Read ``--set KEY=VALUE`` options; values are TOML, a bare word is a string."""
    import tomllib

    from shared.errors import ConfigError

    settings: dict[str, object] = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {item}: expected KEY=VALUE, such as aggregate.rule=ffa")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings


@app.command()
def compare(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="The job; all methods run with it.")
    ],
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B+C,...",
            help="Aggregation rules, alone or with a personalization or a robust way to combine: "
            "fedavg,altfold+duet,fedavg+median.",
        ),
    ],
    seeds: Annotated[int, typer.Option(help="How many seeds, from the job's own on.")] = 3,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,...",
            help="Learning rates that every method chooses from; by default the job's times "
            "1/2, 1 and 2.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; one per core by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of site folders, instead of the job's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison; runs/compare-NAME by default."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as --set rounds=4."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the table as Markdown, below its command.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run methods side by side, on the same data and seeds, and say which is best.

    Each method chooses its learning rate on a seed of its own, by validation records, and then
    runs once per seed with equal steps. Local-only, centralised and the untouched base are always
    rows of the table. Three seeds or more give 95 % intervals.

    Example: consilia compare job.toml --methods fedavg,ffa,altfold+duet --seeds 5

    What is done is kept: after Ctrl-C, the same command goes on. The same folder takes further
    methods and seeds. Exit codes: 0 done, 1 failed, 2 bad input, 3 a run finished without every
    site.
    """
    from simulations.compare.command import Wishes, compare_command

    overrides: dict[str, object] = {
        "data.folder": str(data.resolve()) if data is not None else None,
        **_settings(setting),
    }
    wishes = Wishes(
        job=job,
        methods=methods,
        seeds=seeds,
        rates=rates,
        jobs=jobs,
        overrides=overrides,
        out=out,
        markdown=markdown,
        command=shlex.join(["consilia", *sys.argv[1:]]),
        as_json=as_json,
    )
    raise typer.Exit(compare_command(wishes))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/default-1.")],
) -> None:
    """Write report.html of a run again, from its results."""
    from simulations.deployed import refresh_results
    from simulations.report import write_report

    refresh_results(run)
    path = write_report(run)
    console().print(f"Wrote {path}", highlight=False)


@app.command()
def runs(
    action: Annotated[str, typer.Argument(help="list, or show RUN.")] = "list",
    run: Annotated[str | None, typer.Argument(help="Name of a run.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of this machine, or show one: who took part, what it cost, what came out."""
    from simulations.runs import list_runs, show_run

    if action == "list":
        list_runs(out, console(), as_json=as_json)
    elif action == "show" and run is not None:
        show_run(out, run, console(), as_json=as_json)
    else:
        raise typer.BadParameter("expected 'list' or 'show RUN'")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    to: Annotated[Path, typer.Option(help="Folder to write.")],
    site: Annotated[
        str | None, typer.Option(help="With this site's personal adapter, as it is in use.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole Hugging Face folder, not only the adapter.")
    ] = False,
    despite_audit: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Export although the audit failed; the reason is recorded in export and run.",
        ),
    ] = None,
) -> None:
    """Write a run's adapter as a PEFT folder, or merged into its base.

    An adapter whose audit failed (consilia audit) is not exported, unless a reason is given with
    --despite-audit.
    """
    from simulations.export import export_run

    export_run(run, to, site=site, merged=merged, console=console(), despite_audit=despite_audit)


@app.command()
def audit(
    subject: Annotated[
        Path, typer.Argument(metavar="RUN|JOB.toml", help="A run's folder, or a job file.")
    ],
    site: Annotated[
        str | None, typer.Option(help="Which site gets the canaries; that with the most pairs.")
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=20, help="Phantom patients planted; half train, half do not.")
    ] = 200,
    gradients: Annotated[
        int, typer.Option(min=100, help="Canaries in the sums, for the bound on epsilon.")
    ] = 1000,
    records: Annotated[
        int, typer.Option(min=2, help="Single records whose updates are inverted.")
    ] = 16,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999999, help="Of the bound on epsilon.")
    ] = 0.999,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of a job file."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that holds audits of jobs.")] = Path("runs"),
    write: Annotated[
        Path | None,
        typer.Option(metavar="PAGE.md", help="Also put the table between a page's audit markers."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack what a job trains: membership, a lower bound on epsilon, gradient inversion.

    The job is rehearsed in a folder that is removed, with phantom patients among one site's
    records; the run itself is not touched. Each attack is also made on the same thing without
    protection, so that its power is visible. Of a deployed run the job is rehearsed on synthetic
    sites.

    What is found is written to audit.json beside the run (of a job: in a new folder), into the
    run's privacy statements and its report. consilia export refuses a run whose audit failed.

    Exit codes: 0 passed, or nothing is claimed; 1 failed; 2 bad input.

    Example: consilia audit runs/default-1
    """
    from simulations.startup import loading

    with loading():
        from simulations.audit.command import Wishes, audit_command

    wishes = Wishes(
        subject=subject,
        site=site,
        canaries=canaries,
        gradients=gradients,
        records=records,
        confidence=confidence,
        overrides=_settings(setting),
        out=out,
        write=write,
        command=shlex.join(["consilia", *sys.argv[1:]]),
        as_json=as_json,
    )
    raise typer.Exit(audit_command(wishes))


def command() -> None:
    """Run the command as a process of its own, which ends at once if sites are still training.

    Their threads do not survive the end of Python: torch then aborts the process, after it has
    said that it stopped.
    """
    try:
        main()
    except SystemExit as end:
        if any(thread.name.startswith(LANE) for thread in threading.enumerate()):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def main() -> None:
    """Run the command; errors become one line and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except ConsiliaError as error:
        if isinstance(error, InterruptedRunError):
            _finish_undisturbed()
        _print_error(error)
        sys.exit(error.exit_code)
    except Exception as error:
        sys.exit(_print_unexpected(error))
    if code == _INTERRUPTED:
        _finish_undisturbed()
        _say("stopped")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _finish_undisturbed() -> None:
    """Let no second Ctrl-C cut the message and the end of the process short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(text: str) -> None:
    sys.stderr.write(f"consilia: {' '.join(text.splitlines())}\n")


def _print_unexpected(error: Exception) -> int:
    """One line for what is no error of ours; return the exit code."""
    from click import ClickException, UsageError

    if isinstance(error, ClickException):
        hint = " (see --help)" if isinstance(error, UsageError) else ""
        if message := error.format_message():  # none where the help was shown instead
            _say(f"error: {message}{hint}")
        return 2
    if os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"error: {where}{error.strerror}")
        return 1
    if isinstance(error, MemoryError):
        _say("error: out of memory; try smaller batches: --set train.batch_size=N")
        return 1
    # Only its type and place: the text of an error may quote a record.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    _say(
        f"error: {type(error).__name__}{where}, which should not happen; please report it "
        f"({TRACEBACK}=1 shows where it comes from)"
    )
    return 1


def _print_error(error: ConsiliaError) -> None:
    """One line that says what, where and what was expected; data problems as a table."""
    label = "stopped" if isinstance(error, InterruptedRunError) else "error"
    _say(f"{label}: {error}")
    if isinstance(error, DataError) and error.problems:
        from rich.console import Console
        from rich.table import Table

        table = Table("Row", "Column", "Rule", "Problem")
        for problem in error.problems[:50]:
            row = "" if problem.where is None else str(problem.where)
            table.add_row(row, problem.column or "", problem.rule, problem.message)
        Console(stderr=True).print(table)
        if len(error.problems) > 50:
            sys.stderr.write(f"and {len(error.problems) - 50} more: consilia data check\n")


if __name__ == "__main__":
    command()
