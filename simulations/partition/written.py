"""A partition on disk: an ordinary site folder for each site, pictures where they were.

```
partition/
├── partition.json            where the pictures lie, and the digest of every site's files
└── site-01/{metadata.csv, prompts.json, dataset.json}
```

The tables' file names are relative to the pictures' folder, so a partition copies no picture.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from client.data.describe import NOISY_COLUMN
from client.data.sources import SiteSource, find_sites
from shared.config import JobConfig, PartitionConfig
from shared.errors import RunDirectoryError
from shared.files import replace_folder, write_new
from shared.results import DatasetOrigin
from simulations.partition.plan import SitePlan
from simulations.partition.pool import SOURCE_COLUMN, Pool

INDEX: Final = "partition.json"

_TABLE = "metadata.csv"
_FILES = (_TABLE, "prompts.json", "dataset.json")
_COLUMNS = ("file_name", "text", "labels", "patient_id", "split", SOURCE_COLUMN, NOISY_COLUMN)
_PROTECTION = ("phantom", "public", "private")


def write_partition(folder: Path, plans: Sequence[SitePlan], pool: Pool, job: JobConfig) -> None:
    """Write every site's folder and the index, all or nothing.

    Raises:
        StorageError: If they cannot be written.
    """
    column = job.partition.column
    with replace_folder(folder) as temporary:
        for plan in plans:
            site = temporary / plan.name
            site.mkdir()
            write_new(site / _TABLE, _table(plan, column), 0o600)
            write_new(site / "prompts.json", _json(_prompts(plan, pool)))
            write_new(site / "dataset.json", _json(_dataset(plan, pool, job)))
        index = {
            "root": _relative(pool.root, folder),
            "partition": job.partition.model_dump(mode="json"),
            "seed": job.seed,
            "sites": {
                plan.name: {"sha256": _digest(temporary / plan.name), "left_out": plan.left_out}
                for plan in plans
            },
        }
        write_new(temporary / INDEX, _json(index))


def read_partition(folder: Path, root: Path | None = None) -> list[SiteSource]:
    """Return the sites of a written partition.

    Args:
        folder: Where it was written.
        root: Folder of the pictures; the one that they were in then, if not given.

    Raises:
        RunDirectoryError: If it is damaged or was changed.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        sites, recorded = dict(index["sites"]), Path(index["root"])
        changed = [name for name, kept in sites.items() if kept["sha256"] != _digest(folder / name)]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunDirectoryError(
            f"{folder}: is no whole partition; put it back, or start a new run"
        ) from None
    if changed:
        raise RunDirectoryError(
            f"{folder / changed[0]}: was changed after the run began; put it back, or start a new "
            "run"
        )
    return sources_of(folder, sorted(sites), root or folder / recorded)


def sources_of(folder: Path, names: Sequence[str], root: Path) -> list[SiteSource]:
    """Return the sites of a partition that is written in a folder, or will be."""
    return [SiteSource(name, folder / name / _TABLE, root) for name in names]


def find_written(folder: Path, **options: Any) -> list[SiteSource]:  # noqa: ANN401
    """Find the sites of a folder as ``find_sites`` does, a written partition's as well."""
    if (folder / INDEX).is_file() and not options.get("site_column"):
        return read_partition(folder)
    return find_sites(folder, **options)


def made_by(folder: Path) -> str:
    """Return how a written partition was made, in a sentence; empty for any other folder."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        made, left_out = dict(index["partition"]), [s["left_out"] for s in index["sites"].values()]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    plain = PartitionConfig.model_construct().model_dump(mode="json")
    options = [f"{k} = {_words(v)}" for k, v in made.items() if k != "by" and plain.get(k) != v]
    lost = f"; {sum(left_out)} records left out, of another modality" if any(left_out) else ""
    how = ", ".join([str(made.get("by")), *options])
    return f"Partition by {how}{lost}. Test records are whole."


def _words(value: object) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {_words(item)}" for key, item in value.items())
        return f"{{ {inside} }}"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _table(plan: SitePlan, column: str | None) -> bytes:
    more = (column,) if column is not None and column not in _COLUMNS else ()
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # its line ends are what makes it quote either
    writer.writerow((*_COLUMNS, *more))
    for place, r in enumerate(plan.records):
        noisy = "yes" if place in plan.noisy else ""
        cells = (r.file_name, r.text, r.labels, r.patient, r.split, r.source, noisy)
        writer.writerow((*cells, *(r.value for _ in more)))
    return text.getvalue().encode()


def _prompts(plan: SitePlan, pool: Pool) -> dict[str, dict[str, list[str]]]:
    """The prompts of all sites that records came from: each in the words of its own reports."""
    merged: dict[str, dict[str, dict[str, None]]] = {}
    for source in sorted({record.source for record in plan.records}):
        for finding, prompts in pool.prompts[source].items():
            sides = merged.setdefault(finding, {"positive": {}, "negative": {}})
            sides["positive"] |= dict.fromkeys(prompts.positive)
            sides["negative"] |= dict.fromkeys(prompts.negative)
    return {
        finding: {side: list(texts) for side, texts in sides.items()}
        for finding, sides in merged.items()
    }


def _dataset(plan: SitePlan, pool: Pool, job: JobConfig) -> dict[str, str]:
    """As protected as the most protected of the sites that records came from."""
    origins: list[DatasetOrigin] = [pool.origins[r.source] for r in plan.records]
    origin = max((o.origin for o in origins), key=_PROTECTION.index)
    licences = {o.licence for o in origins}
    # A public set without a licence may not be shown, so its lack of one must survive.
    licence = "" if "" in licences else "; ".join(sorted(licences))
    return {
        "origin": origin,
        "licence": licence,
        "description": f"simulated site ({job.partition.by})",
    }


def _relative(root: Path, folder: Path) -> str:
    """The pictures' folder: relative where both move together, as within a run."""
    root, folder = root.resolve(), folder.resolve()
    return os.path.relpath(root, folder) if root.is_relative_to(folder.parent) else str(root)


def _digest(site: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        content = (site / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _json(tree: object) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()
