"""``consilia simulate`` with a partition: from one table to results, and on again."""

import csv
import json

import pytest
from PIL import Image

from server.job_text import to_toml

PARTITION = {"by": "dirichlet", "sites": 3, "alpha": 1.0, "min_size": 4, "noisy_pairs": 0.25}


@pytest.fixture
def population(site_of, tmp_path):
    """One table of 160 records of 80 patients, with pictures."""
    folder = tmp_path / "all"
    folder.mkdir()
    data = site_of("all", "paired", (96, 32, 32))
    rows = [("file_name", "text", "labels", "patient_id", "split", "scanner")]
    for name, split in data.splits.items():
        for row in range(len(split)):
            file = f"{name}-{row}.png"
            Image.fromarray(split.pixels[row][..., 0]).save(folder / file)
            present = [f for f, on in zip(data.findings, split.labels[row], strict=True) if on]
            labels = ";".join(present) or "none"
            patient, scanner = f"{name}-{row // 2}", "ab"[row // 2 % 2]
            rows.append((file, split.texts[row], labels, patient, name, scanner))
    with (folder / "metadata.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    (folder / "dataset.json").write_text(json.dumps({"origin": "phantom"}))
    return folder


@pytest.fixture
def job_file(small_job, tmp_path):
    def write(**partition):
        tree = small_job.model_dump(mode="json")
        tree |= {"rounds": 1, "partition": partition}
        tree["train"] |= {"steps": 2}
        tree["evaluate"] |= {"bootstrap": 100, "baselines": [], "minimum_count": 1}
        tree["simulation"] |= {"workers": 1, "device": "cpu"}
        path = tmp_path / "job.toml"
        path.write_text(to_toml(type(small_job).model_validate(tree)))
        return path

    return write


def test_a_partitioned_table_runs_a_round_and_is_used_again(
    population, job_file, command, tmp_path
):
    arguments = ("--data", population, "--out", tmp_path / "runs", "--json")
    ended = command("simulate", job_file(**PARTITION), *arguments)
    assert ended.code == 0, ended.err
    results = json.loads(ended.out)
    assert set(results["sites"]) == {"site-01", "site-02", "site-03"}
    run = tmp_path / "runs" / "small-1"
    tables = sorted(run.glob("partition/*/metadata.csv"))
    assert [table.parent.name for table in tables] == ["site-01", "site-02", "site-03"]
    assert not list(run.glob("partition/**/*.png"))

    ended = command("data", "describe", run / "partition", "--figure", tmp_path / "f.svg", "--json")
    assert ended.code == 0
    sites = json.loads(ended.out)["sites"]
    assert sum(site["splits"]["train"]["pairs"] for site in sites) == 96
    for site in sites:
        pairs = site["splits"]["train"]["pairs"]
        assert site["noisy_pairs"]["train"] == round(0.25 * pairs)
        assert site["noisy_pairs"]["test"] == 0
    assert "site-03" in (tmp_path / "f.svg").read_text()
    assert command("data", "check", run / "partition").code == 0

    # What is written holds: the run goes on from it, and not from a changed one.
    assert command("simulate", "--resume", run).code == 0
    with tables[1].open("a") as file:
        file.write("\n")
    ended = command("simulate", "--resume", run)
    assert ended.code == 2
    assert "site-02: was changed after the run began" in ended.line


def test_a_partition_by_scanner_and_kind(population, job_file, command, tmp_path):
    kinds = {"paired": 0.5, "image": 0.5}
    job = job_file(by="column", column="scanner", kinds=kinds)
    ended = command("simulate", job, "--data", population, "--out", tmp_path / "runs", "--json")
    assert ended.code == 0, ended.err
    sites = json.loads(ended.out)["sites"]
    assert sorted(site["kind"] for site in sites.values()) == ["image", "paired"]
    assert set(sites) == {"a", "b"}


def test_an_empty_site_is_refused_before_anything_is_written(
    population, job_file, command, tmp_path
):
    job = job_file(**PARTITION | {"sites": 30, "min_size": 20})
    ended = command("simulate", job, "--data", population, "--out", tmp_path / "runs")
    assert ended.code == 2
    assert "partition: site 'site-" in ended.line
    assert "lower partition.sites or raise partition.alpha" in ended.line
    (population / "train-0.png").write_bytes(b"")  # a picture that cannot be read, likewise
    job = job_file(**PARTITION)
    ended = command("simulate", job, "--data", population, "--out", tmp_path / "runs")
    assert ended.code == 2
    assert "image-empty" in ended.line
    assert not (tmp_path / "runs").exists()
