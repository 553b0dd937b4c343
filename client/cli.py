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


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="The site's file.")] = Path("site.toml"),
    job: Annotated[
        Path | None,
        typer.Option(metavar="JOB.toml", help="The consortium's job; the defaults if not given."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave out what needs the gateway.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look whether a site is ready, and what a job will cost it: time, memory, traffic, disk.

    It visits the gateway, reads the records, and trains one step on them; nothing of them is sent.
    Exit codes: 0 ready, 2 something is to be mended.
    """
    from client.check.command import check_command

    raise typer.Exit(check_command(config, job, offline=offline, as_json=as_json))


@app.command()
def policy(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.toml]", help="A job to hold against the policy.")
    ] = None,
    site: Site = Path(),
    as_json: AsJson = False,
) -> None:
    """Show what the site's policy allows, or everything that it does not allow of a job.

    Exit codes: 0 allowed, 2 not allowed.
    """
    from client.policy_commands import policy_command

    raise typer.Exit(policy_command(site, job, as_json=as_json))


@app.command()
def withdraw(
    reason: Annotated[str, typer.Option(help="For the site's own audit log.")],
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="One run; all, now and later, if left out."),
    ] = None,
    site: Site = Path(),
    as_json: AsJson = False,
) -> None:
    """Withdraw consent: nothing more is trained or released, not even what is under way."""
    from client.audit_commands import withdraw_command

    withdraw_command(site, run, reason, as_json=as_json)


@app.command()
def consent(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="One run; all if left out.")
    ] = None,
    site: Site = Path(),
    as_json: AsJson = False,
) -> None:
    """Give consent again that was withdrawn."""
    from client.audit_commands import consent_command

    consent_command(site, run, as_json=as_json)


@app.command()
def seal(site: Site = Path(), as_json: AsJson = False) -> None:
    """Encrypt what is private in the site's state, with the key that site.toml names.

    Once before the agent is started, and again to go on if it was interrupted. A key file that
    is not there yet is made.
    """
    from client.sealing_commands import seal_command

    seal_command(site, as_json=as_json)


@app.command()
def rekey(
    site: Site = Path(),
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The new key's; made if not there.")
    ] = None,
    passphrase: Annotated[
        str | None, typer.Option(metavar="ask|fd:N", help="How the new passphrase comes.")
    ] = None,
    credential: Annotated[
        str | None, typer.Option(metavar="NAME", help="The new credential of systemd's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the key that the site's state is sealed with; the files stay as they are.

    Stop the agent first. Give exactly one of the options; the key before is the one of site.toml.
    """
    from client.sealing_commands import rekey_command

    rekey_command(site, key_file, passphrase, credential, as_json=as_json)


@app.command("open")
def open_sealed(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as state/personal/....")],
    to: Annotated[Path, typer.Option(help="A new file, in the clear.")],
    site: Site = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a sealed file's content, such as the personal adapter, to a new file in the clear."""
    from client.sealing_commands import open_command

    open_command(site, file, to, as_json=as_json)


audit = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="The site's audit log: every decision, and everything that left.",
)
app.add_typer(audit, name="audit")


@audit.command("verify")
def audit_verify(
    site: Site = Path(),
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|SEQ:SHA256",
            help="From `consilia server anchors --json`; may be repeated.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no line was changed, removed or put in; with --anchor, that none was cut off."""
    from client.audit_commands import verify_command

    verify_command(site, anchor or [], as_json=as_json)


@audit.command("show")
def audit_show(
    site: Site = Path(),
    last: Annotated[int, typer.Option(min=1, help="So many lines.")] = 20,
    run: Annotated[str | None, typer.Option(help="Only lines about this run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the last lines of the audit log."""
    from client.audit_commands import show_command

    show_command(site, last, run, as_json=as_json)
