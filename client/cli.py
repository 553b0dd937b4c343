"""The commands ``consilia client ...``; each loads what it needs only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Take part in a consortium with a site's own data.",
)


@app.command()
def agent(
    config: Annotated[Path, typer.Option(help="The site's file.")] = Path("site.toml"),
) -> None:
    """Run the site's agent until a signal: it holds data and base, and needs no network.

    It listens at a Unix socket, readable by its owner only, and serves one run after another.
    """
    from client.agent_process import run_agent

    raise typer.Exit(run_agent(config))


@app.command()
def courier(
    site: Annotated[Path, typer.Option(help="The site's folder.")] = Path(),
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The gateway, if not the kit's.")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(help="The agent's socket, if not run/agent.sock.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder for Flower's own files, if not courier.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS; for one machine only.")
    ] = False,
) -> None:
    """Run the site's courier until a signal: it has a network and sees no record.

    It carries messages between the consortium's gateway and the agent's socket, over one
    outbound connection, with the kit's certificate and the site's node key.
    """
    from client.courier import courier_settings, run_courier

    raise typer.Exit(
        run_courier(courier_settings(site, superlink, socket, home, insecure=insecure))
    )


Site = Annotated[Path, typer.Option(help="The site's folder.")]
HandOver = Annotated[
    Path | None, typer.Option(help="Where to write what is handed to the coordinator.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")
]


@app.command("init")
def init(
    site: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")],
    name: Annotated[str, typer.Option(help="Of the site: a-z, 0-9 and '-'.")],
    out: HandOver = None,
    as_json: AsJson = False,
) -> None:
    """Make a site's keys here, and the public part to hand to the coordinator."""
    from client.provisioning.commands import init_command

    init_command(site, name, out, as_json=as_json)


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="What the coordinator sent back.")],
    site: Site = Path(),
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="FINGERPRINT", help="What the coordinator reads out over the phone."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join a consortium with a kit, or take a newer kit of it."""
    from client.provisioning.commands import join_command

    join_command(site, kit, fingerprint, as_json=as_json)


@app.command()
def rotate(
    site: Site = Path(),
    out: HandOver = None,
    as_json: AsJson = False,
) -> None:
    """Make new keys; those in use stay so until the kit for the new ones has come."""
    from client.provisioning.commands import rotate_command

    rotate_command(site, out, as_json=as_json)
