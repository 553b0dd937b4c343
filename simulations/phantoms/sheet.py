"""Contact sheets, to look at what was made."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from simulations.phantoms.render import render, render_all
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.sites import PhantomSite, draw_records, seed_for
from simulations.phantoms.studies import (
    ANATOMY_SIZE,
    FINDINGS,
    SHAPE_SIZE,
    Finding,
    Study,
)
from simulations.phantoms.texture import SIZE, Array

CAPTION = 12
CHARACTER_WIDTH = 5.6
COLUMNS = 6
GREYS = 48
CLEAN_SCANNER = Scanner(noise=(0.004, 0.008), collimation=0, blur=(0, 0), marker=0.3)


def draw_sheet(
    rows: Sequence[tuple[str, Array]], path: Path, *, zoom: float = 1.0, across: int = 1
) -> None:
    """Save captioned rows of pictures (k, 96, 96) as one picture, ``across`` rows side by side."""
    side = int(SIZE * zoom)
    width = max(len(pictures) for _, pictures in rows) * side
    height = side + CAPTION
    sheet = Image.new("L", (width * across, height * -(-len(rows) // across)))
    pen = ImageDraw.Draw(sheet)
    for place, (caption, pictures) in enumerate(rows):
        left, top = place % across * width, place // across * height
        pen.text((left + 2, top), caption[: int(width / CHARACTER_WIDTH)], fill=255)
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (left + column * side, top + CAPTION))
    sheet.quantize(GREYS).save(path, optimize=True)


def finding_sheet(path: Path, *, columns: int = 5, seed: int = 1) -> None:
    """Every finding alone on a clean film, severity rising to the right."""
    rng = np.random.default_rng(seed)
    anatomies = rng.standard_normal((columns, ANATOMY_SIZE))
    shapes = rng.random((columns, SHAPE_SIZE))
    rows = []
    for name in ("normal", *FINDINGS):
        studies = []
        for column in range(columns):
            severity = (column + 0.5) / columns
            finding = Finding(column % 2, column % 3, severity, shapes[column])
            present = {} if name == "normal" else {name: finding}
            studies.append(Study(name, anatomies[column], present))
        rows.append((name, render(studies, CLEAN_SCANNER, np.random.default_rng(3))))
    draw_sheet(rows, path, across=2)


def site_sheet(path: Path, sites: Sequence[PhantomSite], seed: int) -> None:
    """A row of films of each site, captioned with its name, kind and the first two reports."""
    rows = []
    for site in sites:
        records = draw_records(site, seed)[:COLUMNS]
        films = render_all([r.study for r in records], site.scanner, seed_for(seed, "pictures"))
        texts = " | ".join(record.report.text for record in records[:2])
        rows.append((f"{site.name} [{site.kind}] {texts}", films))
    draw_sheet(rows, path, zoom=1.1)
