"""The run report: one HTML file from ``results.json``, ``manifest.json`` and ``audit.json``."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError

from shared.errors import RunDirectoryError
from shared.files import write_atomic
from shared.page.assets import FOLDER
from shared.results import SCHEMA_VERSION, Results
from simulations.audit.results import AuditReport, read_audit
from simulations.report.context import Room, context
from simulations.report.disclosure import released

MOST_BYTES = 2_000_000
# Tried in this order until the page fits: pictures go first, then Table 5.
ROOMS = (Room(), Room(20), Room(10), Room(0), Room(0, course_table=False))


@cache
def _environment() -> Environment:
    folders = [Path(__file__).parent / "templates", FOLDER]
    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(
    results: Results,
    manifest: Mapping[str, object],
    *,
    digest: str = "",
    audit: AuditReport | None = None,
) -> str:
    """Return the page; the same input gives the same bytes.

    Args:
        results: The measured run.
        manifest: Versions, hashes and seeds, for the record section.
        digest: sha256 of ``results.json``, for the footer.
        audit: Of the run, if there was one.
    """
    shown = released(results)
    template = _environment().get_template("report.html.j2")
    page = ""
    for room in ROOMS:
        page = template.render(context(shown, manifest, room, digest, audit))
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all, and return its path.

    Raises:
        RunDirectoryError: If the folder holds no readable results.
        StorageError: If the page cannot be written.
    """
    results, digest = _load_results(run_dir / "results.json")
    manifest_path = run_dir / "manifest.json"
    manifest = _load_json(manifest_path) if manifest_path.exists() else {}
    page = render(results, manifest, digest=digest, audit=read_audit(run_dir))
    path = run_dir / "report.html"
    write_atomic(path, page.encode())
    return path


def _load_results(path: Path) -> tuple[Results, str]:
    data = _load_json(path)
    # Default deny: data of unknown origin are private.
    data.setdefault("origin", {"origin": "private"})
    if data.get("schema_version") != SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path}: schema version {data.get('schema_version')}, expected {SCHEMA_VERSION}; "
            "write the report with the version of Consilia that made the run"
        )
    try:
        results = Results.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunDirectoryError(f"{path}: {where}: {first['msg']}") from error
    return results, hashlib.sha256(path.read_bytes()).hexdigest()


def _load_json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: {error.strerror}; a report needs a run that reached its results"
        ) from error
    except ValueError as error:
        raise RunDirectoryError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path}: expected one JSON object")
    return data
