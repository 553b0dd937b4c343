"""``consilia server anchors``: the lines of the sites' audit logs that came with their answers.

A site that compares its log with them (``consilia client audit verify --anchor FILE``) finds out
whether somebody there cut lines off or wrote the log anew: what is here, nobody there can change.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

from pydantic import ValidationError
from rich.console import Console

from server.checkpoint import RunStore
from server.history import RunHistory
from server.home import CoordinatorHome
from server.phases import CLOSING_PHASES, FOLDERS
from server.records import KeptAnchor
from shared.errors import RunDirectoryError
from shared.messages import Anchor


def anchors_command(
    home: CoordinatorHome, run: str | None, site: str | None, console: Console, *, as_json: bool
) -> None:
    """Print what is kept of the sites' audit logs.

    Args:
        home: The coordinator's folder.
        run: A run; all of them if not given.
        site: A site; all of them if not given.
        console: Where.
        as_json: Print one JSON object, which a site can compare its log with.

    Raises:
        RunDirectoryError: If there is no such run, or nothing is kept.
    """
    found = [each for each in kept_anchors(home, run) if site in (None, each.site)]
    if not found:
        of = f" of site {site}" if site else ""
        raise RunDirectoryError(
            f"{home.folder}: no answer{of} is kept yet; `consilia server status` tells who answered"
        )
    if as_json:
        console.print_json(json.dumps({"anchors": [asdict(each) for each in found]}))
        return
    for each in found:
        line = f"{each.site}  {each.run}  {each.phase}  {each.seq}:{each.sha256}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def kept_anchors(home: CoordinatorHome, run: str | None) -> list[KeptAnchor]:
    """Return what the rounds and the closing phases of a run, or of all, brought.

    Raises:
        RunDirectoryError: If there is no such run.
    """
    if run is not None:
        home.run_path(run)
    with RunHistory(home.history_url) as history:
        names = [run] if run is not None else [each.name for each in reversed(history.runs())]
        return [
            anchor
            for name in names
            for anchor in (*history.anchors(name), *_of_closing_phases(home, name))
        ]


def _of_closing_phases(home: CoordinatorHome, run: str) -> Iterator[KeptAnchor]:
    path = home.runs / run
    if not (path / "manifest.json").exists():  # of another machine that shares the history
        return
    with RunStore.open(path, lock=False) as store:
        for phase in CLOSING_PHASES:
            for site, record in store.read_records(FOLDERS[phase]).items():
                try:
                    anchor = Anchor.model_validate(record.get("anchor"))
                except ValidationError:
                    continue
                yield KeptAnchor(site, run, phase, anchor.seq, anchor.sha256)
