"""Random records: as a site's data in memory, and as the folders that a run reads."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from benchmarks.geometry import Geometry
from client.data.records import SiteData, Split, SplitName
from shared.results import DatasetOrigin

_START_AND_END = 2


def random_split(geometry: Geometry, count: int, seed: int) -> Split:
    """Return pairs of noise and distinct captions; every record is its own patient."""
    rng = np.random.default_rng(seed)
    side = geometry.picture
    everything = np.ones(count, dtype=np.bool_)
    return Split(
        pixels=rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        has_image=everything,
        texts=random_captions(geometry, count, rng),
        has_text=everything,
        labels=np.zeros((count, 0), dtype=np.float32),
        labelled=np.zeros(count, dtype=np.bool_),
        patients=np.arange(count, dtype=np.int64),
    )


def random_captions(geometry: Geometry, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Return distinct captions, their lengths spread evenly over the geometry's range.

    Distinct, because equal texts are encoded once and are positives of each other.
    """
    least, most = geometry.caption
    captions: dict[str, None] = {}
    while len(captions) < count:
        length = int(rng.integers(least, most + 1)) - _START_AND_END
        words = rng.integers(0, geometry.words, length)
        captions[" ".join(f"w{word}" for word in words)] = None
    return tuple(captions)


def site_name(number: int) -> str:
    """Return the name of a site, which is that of its folder too."""
    return f"site-{number:04d}"


def random_site(geometry: Geometry, pairs: int, seed: int) -> SiteData:
    """Return a site that has training pairs and nothing else."""
    empty = random_split(geometry, 0, seed)
    train = random_split(geometry, pairs, seed)
    splits: dict[SplitName, Split] = {"train": train, "val": empty, "test": empty}
    return SiteData(site_name(seed), (), {}, splits, DatasetOrigin(origin="phantom"))


def random_sites(geometry: Geometry, sites: int, pairs: int) -> list[SiteData]:
    """Return sites that differ in their seed only."""
    return [random_site(geometry, pairs, seed) for seed in range(sites)]


def write_site(folder: Path, data: SiteData) -> None:
    """Write a site's training pairs as a table beside its pictures."""
    train = data.splits["train"]
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "patient_id", "split"])
        for row, text in enumerate(train.texts):
            name = f"{row:04d}.png"
            PIL.Image.fromarray(train.pixels[row]).save(folder / name, compress_level=0)
            table.writerow([name, text, f"p{row}", "train"])


def write_sites(folder: Path, geometry: Geometry, sites: int, pairs: int) -> None:
    """Write random sites as the folders ``site-0000``, ``site-0001`` and so on."""
    for seed in range(sites):
        data = random_site(geometry, pairs, seed)
        write_site(folder / data.name, data)


def read_site(folder: Path) -> tuple[list[PIL.Image.Image], Sequence[str]]:
    """Read a folder of ``write_site`` as anybody would: pictures and texts of all rows."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = [PIL.Image.open(folder / row["file_name"]).convert("RGB") for row in rows]
    return pictures, [row["text"] for row in rows]
