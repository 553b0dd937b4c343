"""The commands ``consilia data ...``: what can be said of records before anything is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Check, describe and make site folders."
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")
]
SiteColumn = Annotated[
    str | None, typer.Option(help="Column that names the site, if one table holds all sites.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="OURS=THEIRS",
        help="Map a column, such as --column text=text_masked; may be repeated.",
    ),
]


def mapping(columns: list[str] | None) -> dict[str, str]:
    """Read ``--column OURS=THEIRS`` options."""
    from shared.errors import ConfigError

    mapping = {}
    for item in columns or []:
        ours, separator, theirs = item.partition("=")
        if not separator or not ours or not theirs:
            raise ConfigError(f"--column {item}: expected OURS=THEIRS, such as text=text_masked")
        mapping[ours] = theirs
    return mapping


@app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Site folder, folder of them, or one table.")],
    site_column: SiteColumn = None,
    column: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Find every problem of a site's data at once: row, column, rule, what was expected."""
    from client.data.report import DataOptions, print_check
    from simulations.partition.written import find_written

    options = DataOptions(site_column=site_column, columns=mapping(column), find=find_written)
    raise typer.Exit(print_check(folder, options, console(), as_json=as_json))


@app.command("describe")
def data_describe(
    folder: Annotated[Path, typer.Argument(help="Site folder, folder of them, or one table.")],
    site_column: SiteColumn = None,
    column: Columns = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the sites side by side, as .svg or .html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a site's data hold: records by split, findings, text lengths, image sizes."""
    from client.data.overview import check_figure
    from client.data.report import DataOptions, print_describe
    from simulations.partition.written import find_written, made_by

    if figure is not None:
        check_figure(figure)
    options = DataOptions(
        site_column=site_column, columns=mapping(column), find=find_written, made_by=made_by
    )
    code = print_describe(folder, options, console(), as_json=as_json, figure=figure)
    raise typer.Exit(code)


@app.command("phantoms")
def data_phantoms(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    scenario: Annotated[
        Literal["default", "conflict"], typer.Option(help="Which synthetic federation.")
    ] = "default",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    sites: Annotated[int | None, typer.Option(min=1, help="How many sites.")] = None,
) -> None:
    """Write the synthetic hospitals as ordinary site folders."""
    from shared.errors import ConfigError
    from simulations.phantoms.federation import write_federation

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: expected a folder that does not exist or is empty")
    folders = write_federation(out, scenario, seed=seed, sites=sites)
    console().print(
        f"Wrote {len(folders)} sites to {out}\nNext: consilia data describe {out}", highlight=False
    )


def console() -> "Console":
    """Return what is printed on; loaded only then."""
    from rich.console import Console

    return Console()
