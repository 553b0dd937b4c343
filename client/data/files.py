"""The two optional files beside a table: ``prompts.json`` and ``dataset.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from client.data.records import Prompts
from client.data.sources import SiteSource
from shared.errors import DataProblem
from shared.results import DatasetOrigin

ORIGINS: Final = ("phantom", "public", "private")
PRIVATE: Final = DatasetOrigin(origin="private")
"""Without ``dataset.json`` nothing of a site's records is shown to anybody."""

_LARGEST = 4 * 2**20


def companion(source: SiteSource, name: str) -> Path | None:
    """Return the file of that name that belongs to a site, if there is one.

    A site within a common table may have a folder of its own beside the table; otherwise
    the file beside the table is for all of the table's sites.
    """
    folders = [source.table.parent]
    if source.site_column is not None:
        folders.insert(0, source.table.parent / source.name)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_prompts(source: SiteSource) -> tuple[dict[str, Prompts], list[DataProblem]]:
    """Return the prompts per finding, and what is wrong with the file."""
    path = companion(source, "prompts.json")
    if path is None:
        return {}, []
    tree = _read_object(path)
    if tree is None:
        return {}, [_problem("prompts-malformed", "prompts.json is not a JSON object in UTF-8")]
    prompts, problems = {}, []
    for number, (finding, entry) in enumerate(tree.items(), start=1):
        sides = {side: _texts(entry, side) for side in ("positive", "negative")}
        if all(sides.values()):
            name = " ".join(finding.split())
            prompts[name] = Prompts(sides["positive"], sides["negative"])
        else:
            problems.append(
                _problem(
                    "prompts-malformed",
                    f"prompts.json, finding number {number}: expected an object with positive "
                    "and negative, each a list of at least one text",
                )
            )
    return prompts, problems


def read_dataset(source: SiteSource) -> tuple[DatasetOrigin, list[DataProblem]]:
    """Return where the records come from, and what is wrong with the file."""
    path = companion(source, "dataset.json")
    if path is None:
        return PRIVATE, []
    tree = _read_object(path)
    if tree is None:
        return PRIVATE, [
            _problem("dataset-malformed", "dataset.json is not a JSON object in UTF-8")
        ]
    origin = tree.get("origin", "private")
    words = {key: tree.get(key, "") for key in ("licence", "description")}
    if origin not in ORIGINS:
        message = f"dataset.json, origin: expected one of {', '.join(ORIGINS)}"
        return PRIVATE, [_problem("dataset-malformed", message)]
    if not all(isinstance(value, str) for value in words.values()):
        message = "dataset.json: licence and description must be texts"
        return PRIVATE, [_problem("dataset-malformed", message)]
    return DatasetOrigin(origin=origin, **words), []


def _read_object(path: Path) -> Mapping[str, object] | None:
    try:
        if path.stat().st_size > _LARGEST:
            return None
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _texts(entry: object, side: str) -> tuple[str, ...]:
    texts = entry.get(side) if isinstance(entry, dict) else None
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        return ()
    return tuple(texts)


def _problem(rule: str, message: str) -> DataProblem:
    return DataProblem(None, None, rule, message)
