"""Write a phantom site as an ordinary site folder, read by the loader that real sites use."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from simulations.phantoms.grammar import prompts
from simulations.phantoms.render import render_all
from simulations.phantoms.sites import PhantomSite, Record, draw_records, seed_for
from simulations.phantoms.studies import FINDINGS
from simulations.phantoms.texture import Array

COLUMNS = ("file_name", "text", "labels", "patient_id", "split")
NO_FINDING = "none"  # an empty cell would mean "not labelled"
PROMPT_STYLE_WITHOUT_TEXTS = "std"


@dataclass(frozen=True)
class Row:
    """One row of the table: a record, and which of its two sides it shows."""

    record: Record
    picture: Array | None
    has_text: bool


def write_site(folder: Path, site: PhantomSite, seed: int) -> None:
    """Write pictures, table, prompts and description of a site; equal bytes for an equal seed.

    Training and validation rows hold what the site's kind says. Test rows always hold both sides,
    so that a simulation can audit retrieval where a real site of that kind could not.

    Args:
        folder: Created if missing; must not hold a site yet.
        site: The site.
        seed: Seed of everything drawn for it.

    Raises:
        FileExistsError: If the folder already has a table.
    """
    table = folder / "metadata.csv"
    if table.exists():
        raise FileExistsError(f"{table}: already there, expected a new or empty folder")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = _rows(site, seed)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, row in enumerate(rows):
            writer.writerow(_cells(row, _save_picture(row.picture, folder, number)))
    _write_json(folder / "prompts.json", _site_prompts(site))
    _write_json(folder / "dataset.json", _description(site))


def _rows(site: PhantomSite, seed: int) -> list[Row]:
    records = draw_records(site, seed)
    shown = [record for record in records if site.kind != "text" or record.split == "test"]
    pictures = render_all([r.study for r in shown], site.scanner, seed_for(seed, "pictures"))
    by_record = {id(record): picture for record, picture in zip(shown, pictures, strict=True)}
    rows: list[Row] = []
    for record in records:
        picture = by_record.get(id(record))
        if record.split == "test" or site.kind == "paired":
            rows.append(Row(record, picture, True))
        elif site.kind == "unpaired":
            rows += [Row(record, picture, False), Row(record, None, True)]
        else:
            rows.append(Row(record, picture, site.kind == "text"))
    order = np.random.default_rng(seed_for(seed, "order")).permutation(len(rows))
    return [rows[place] for place in order]


def _save_picture(picture: Array | None, folder: Path, number: int) -> str:
    if picture is None:
        return ""
    name = f"images/{number:06d}.png"
    Image.fromarray(picture).save(folder / name, compress_level=1)
    return name


def _cells(row: Row, file_name: str) -> Sequence[str]:
    record = row.record
    present = [name for name in FINDINGS if name in record.study.findings]
    text = record.report.text if row.has_text else ""
    labels = ";".join(present) or NO_FINDING
    return file_name, text, labels, record.study.patient, record.split


def _site_prompts(site: PhantomSite) -> dict[str, dict[str, list[str]]]:
    if site.kind == "image":
        return prompts(PROMPT_STYLE_WITHOUT_TEXTS)
    return prompts(site.style, convention_rate=site.convention_rate)


def _description(site: PhantomSite) -> dict[str, str]:
    return {
        "origin": "phantom",
        "licence": "synthetic",
        "description": site.description,
        "note": (
            f"Synthetic chest radiographs and reports of the made-up institution {site.name}. "
            "No patient exists. Test rows hold both picture and text whatever the kind: "
            "a simulation-only audit set."
        ),
        "kind": site.kind,
        "style": site.style,
    }


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
