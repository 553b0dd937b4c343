"""A comparison of seconds: two small sites as folders, a small random base, one or two steps."""

import csv
import json

import pytest
from PIL import Image


def write_site(folder, data) -> None:
    folder.mkdir(parents=True)
    rows = []
    for name, split in data.splits.items():
        for row in range(len(split)):
            file = f"{name}-{row}.png"
            Image.fromarray(split.pixels[row, ..., 0]).save(folder / file)
            present = [f for f, on in zip(data.findings, split.labels[row], strict=True) if on]
            labels = ";".join(present) or "none"
            rows.append((file, split.texts[row], labels, f"{name}-{row}", name))
    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "text", "labels", "patient_id", "split"])
        writer.writerows(rows)
    prompts = {
        finding: {"positive": list(p.positive), "negative": list(p.negative)}
        for finding, p in data.prompts.items()
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "dataset.json").write_text(json.dumps({"origin": "phantom"}))


@pytest.fixture(scope="session")
def sites_folder(tmp_path_factory, site_of):
    """Folders ``north`` and ``south``: 16 / 10 / 16 paired records each."""
    folder = tmp_path_factory.mktemp("sites")
    for seed, name in enumerate(("north", "south")):
        write_site(folder / name, site_of(name, counts=(16, 10, 16), seed=seed))
    return folder


@pytest.fixture
def job_file(tmp_path, clip_folder, sites_folder):
    """A job of one round of two steps on the two sites."""
    path = tmp_path / "job.toml"
    path.write_text(
        f"""
name = "small"
rounds = 2
[data]
folder = "{sites_folder}"
[model]
base = "{clip_folder}"
precision = "float32"
[lora]
rank = 2
alpha = 4
[train]
learning_rate = 0.01
steps = 2
batch_size = 8
shift_pixels = 1
[personalize]
rank = 2
steps = 2
[evaluate]
bootstrap = 100
[simulation]
device = "cpu"
"""
    )
    return path
