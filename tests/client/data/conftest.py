"""A small site folder without any problem, which tests damage in one place at a time."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.data.check import SiteCheck, check_site
from client.data.sources import find_sites

# Words that only the records hold: none of them may be in a message.
MARKERS = ("zebra-report", "zebrapatient", "zebrafile")


def noise(seed: int, *, size: int = 24, mode: str = "L") -> Image.Image:
    """A picture that differs from every other one."""
    shape = (size, size, len(mode)) if len(mode) > 1 else (size, size)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return (
        Image.fromarray(values, mode=None)
        if mode in {"L", "RGB"}
        else Image.frombytes(mode, (size, size), values.tobytes())
    )


@dataclass
class SiteFolder:
    """Rows and files of a site; ``write`` puts the table down."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def fill(self, splits: str = "ttttvvee") -> "SiteFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        names = {"t": "train", "v": "val", "e": "test"}
        for index, split in enumerate(splits):
            file_name = f"zebrafile{index}.png"
            noise(index).save(self.path / file_name)
            self.rows.append(
                {
                    "file_name": file_name,
                    "text": f"zebra-report number {index}",
                    "labels": "edema" if index % 2 else "none",
                    "patient_id": f"zebrapatient{index}",
                    "split": names[split],
                }
            )
        sides = {"positive": ["edema"], "negative": ["no edema"]}
        self.json("prompts.json", {"edema": sides})
        self.json("dataset.json", {"origin": "public", "licence": "CC0", "kind": "extra"})
        return self

    def json(self, name: str, tree: object) -> None:
        (self.path / name).write_text(json.dumps(tree), encoding="utf-8")

    def write(self) -> "SiteFolder":
        with (self.path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        return self

    def write_text(self, text: str | bytes, name: str = "metadata.csv") -> "SiteFolder":
        data = text.encode() if isinstance(text, str) else text
        (self.path / name).write_bytes(data)
        return self

    def without(self, column: str) -> "SiteFolder":
        for row in self.rows:
            del row[column]
        return self

    def replace_picture(self, index: int, name: str, save: Callable[[Path], object]) -> None:
        save(self.path / name)
        self.rows[index]["file_name"] = name

    def check(self, **options: Any) -> SiteCheck:
        quick = options.pop("quick", False)
        (source,) = find_sites(self.path, **options)
        return check_site(source, quick=quick)

    def rules(self, **options: Any) -> list[str]:
        """Names of the broken rules, errors first, each once."""
        return list(dict.fromkeys(problem.rule for problem in self.check(**options).problems))


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return SiteFolder(tmp_path / "north").fill()
