"""The commands ``consilia server ...``; each loads what it needs only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Coordinate a consortium: its keys, its sites, its runs.",
)

Home = Annotated[Path, typer.Option(help="The coordinator's folder.")]


@app.command()
def start(
    home: Home = Path("coordinator"),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on the loopback interface.")
    ] = 8000,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="gateway|superlink|superexec",
            help="Run only this part; may be repeated. For one container each.",
        ),
    ] = None,
) -> None:
    """Run the coordinator until Ctrl-C: gateway, Flower's SuperLink and SuperExec, a watcher.

    Sites reach the gateway; all else listens on the loopback interface only. Any of them may
    die: it is started again, and runs go on from their last committed round.
    """
    from server.home import CoordinatorHome
    from server.start import Part, start_command
    from shared.errors import ConfigError

    unknown = sorted(set(part or ()) - {str(known) for known in Part})
    if unknown:
        raise ConfigError(f"--part {unknown[0]}: expected one of {', '.join(Part)}")
    parts = [Part(name) for name in part or ()]
    raise typer.Exit(start_command(CoordinatorHome.at(home), port, parts))


@app.command()
def submit(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.toml]", help="The job; the same as simulate's.")
    ] = None,
    home: Home = Path("coordinator"),
    layout: Annotated[
        Path | None,
        typer.Option(help="The base's layout.json, where the coordinator has no torch."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a stopped or failed run.")
    ] = None,
) -> None:
    """Start a run of a job at the connected sites, or go on with one.

    Prints the run's name. The run begins once the sites that the job names are connected.
    """
    from server.home import CoordinatorHome
    from server.submit import resume_command, submit_command
    from shared.errors import ConfigError

    if (job is None) == (resume is None):
        raise ConfigError("submit: expected either JOB.toml or --resume RUN")
    where = CoordinatorHome.at(home)
    run = submit_command(where, job, layout) if job else resume_command(where, str(resume))
    typer.echo(f"Run {run}\nNext: consilia server status {run} --home {home}")


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run.")] = None,
    home: Home = Path("coordinator"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")
    ] = False,
) -> None:
    """Show runs: round, who is online, who is awaited until when, who was left out and why."""
    from rich.console import Console

    from server.home import CoordinatorHome
    from server.status import status_command

    where = CoordinatorHome.at(home)
    status_command(where, run, Console(), as_json=as_json, watch=watch)


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    home: Home = Path("coordinator"),
) -> None:
    """End a run; its committed rounds stay, and submit --resume goes on with it."""
    from server.home import CoordinatorHome
    from server.submit import stop_command

    stop_command(CoordinatorHome.at(home), run)
    typer.echo(f"Stopped {run}\nGo on with: consilia server submit --resume {run} --home {home}")


Fingerprint = Annotated[
    str | None,
    typer.Option(metavar="FINGERPRINT", help="What the other side reads out over the phone."),
]
KitOut = Annotated[Path | None, typer.Option(help="Where to write the kit as well.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")
]


@app.command("init")
def init(
    home: Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")],
    name: Annotated[str, typer.Option(help="Of the consortium: a-z, 0-9 and '-'.")],
    host: Annotated[
        list[str], typer.Option(help="Where sites reach the gateway; may be repeated.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the gateway.")] = 443,
    as_json: AsJson = False,
) -> None:
    """Make a consortium: its authority, keys, roster and the gateway's configuration."""
    from server.provisioning.commands import init_command

    init_command(home, name, host, port, as_json=as_json)


@app.command()
def admit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What the site handed over.")],
    home: Home = Path("coordinator"),
    fingerprint: Fingerprint = None,
    out: KitOut = None,
    as_json: AsJson = False,
) -> None:
    """Admit a site with its public part, which admits once; writes the site's kit."""
    from server.provisioning.commands import admit_command

    admit_command(home, file, fingerprint, out, as_json=as_json)


@app.command()
def rotate(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What its `rotate` wrote.")],
    home: Home = Path("coordinator"),
    fingerprint: Fingerprint = None,
    overlap_days: Annotated[
        float, typer.Option(min=0, max=90, help="So long its old keys count too.")
    ] = 7.0,
    out: KitOut = None,
    as_json: AsJson = False,
) -> None:
    """Give a site new keys; no other site notices."""
    from server.provisioning.commands import rotate_command

    rotate_command(home, site, file, fingerprint, overlap_days, out, as_json=as_json)


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Home = Path("coordinator"),
) -> None:
    """Let nothing more count that a site signs; no other site notices."""
    from server.provisioning.commands import revoke_command

    revoke_command(home, site)


@app.command()
def kit(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Home = Path("coordinator"),
    out: KitOut = None,
    as_json: AsJson = False,
) -> None:
    """Write a site's kit again, with the roster as it is now."""
    from server.provisioning.commands import kit_command

    kit_command(home, site, out, as_json=as_json)


@app.command()
def renew(
    home: Home = Path("coordinator"),
    host: Annotated[list[str] | None, typer.Option(help="A further host; may be repeated.")] = None,
) -> None:
    """Make a new key and certificate for the gateway; no site notices."""
    from server.provisioning.commands import renew_command

    renew_command(home, host or [])


@app.command()
def anchors(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run.")] = None,
    home: Home = Path("coordinator"),
    site: Annotated[str | None, typer.Option(help="Only this site's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which lines of the sites' audit logs came with their answers.

    With --json, a site can compare its log with them (consilia client audit verify --anchor).
    """
    from rich.console import Console

    from server.anchors import anchors_command
    from server.home import CoordinatorHome

    anchors_command(CoordinatorHome.at(home), run, site, Console(), as_json=as_json)
