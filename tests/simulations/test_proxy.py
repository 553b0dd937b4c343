"""The public set of a simulation: who is in it, and what is refused with what to do."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from client.data.sources import find_sites
from client.settings import SiteSettings
from shared.config import JobConfig
from shared.errors import ConfigError, DataError
from shared.model.encoder import DualEncoder
from simulations.proxy import PROXY_FOLDER, proxy_phantoms, read_proxy, write_proxy


@pytest.fixture(scope="module")
def encoder(small_job):
    return DualEncoder.load(small_job.model, small_job.lora)


def write_set(folder, pairs=48, sides="both", texts=99):
    """A site's folder of grey pictures with numbered texts, all records to train."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(pairs):
        file, text = f"{number}.png", f"spot {number % texts}"
        if sides != "text":
            values = np.full((16, 16), number, np.uint8)
            values[number % 16] = 200
            Image.fromarray(values).save(folder / file)
        rows.append(("" if sides == "text" else file, "" if sides == "image" else text, number))
    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "text", "patient_id"])
        writer.writerows(rows)
    return folder


def job_of(small_job, **proxy):
    tree = small_job.model_dump(mode="json")
    tree["proxy"] |= proxy
    return JobConfig.model_validate(tree)


def read(tmp_path, small_job, encoder, folder, settings=(), **proxy):
    job = job_of(small_job, folder=str(folder), **proxy)
    return read_proxy(tmp_path / "run", job, settings, encoder)


def test_a_folder_is_read_whole_whatever_its_splits(tmp_path, small_job, encoder):
    pairs = read(tmp_path, small_job, encoder, write_set(tmp_path / "public"))
    assert len(pairs) == 48
    assert sorted(pairs.texts) == sorted(f"spot {number}" for number in range(48))
    assert len(set(pairs.patients)) == 48
    for row, text in enumerate(pairs.texts):
        number = int(text.split()[1])
        other = (number + 1) % 16
        assert pairs.pixels[row, other, 0, 0] == number, "every picture beside its own text"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sides", ["image", "text"])
def test_a_set_without_pairs(tmp_path, small_job, encoder, sides):
    folder = write_set(tmp_path / "public", sides=sides)
    with pytest.raises(DataError, match=r"public: no record has both .* expected pairs, .* add"):
        read(tmp_path, small_job, encoder, folder)


def test_too_few_pairs(tmp_path, small_job, encoder):
    folder = write_set(tmp_path / "public", pairs=20)
    with pytest.raises(DataError, match="20 pairs leave 5 to validate on, expected at least 8"):
        read(tmp_path, small_job, encoder, folder)
    assert len(read(tmp_path, small_job, encoder, folder, held_out=0.5)) == 20


def test_a_folder_that_is_not_there(tmp_path, small_job, encoder):
    with pytest.raises(ConfigError, match=r"proxy.folder: .*nowhere: no such folder"):
        read(tmp_path, small_job, encoder, tmp_path / "nowhere")


def test_a_folder_without_a_table(tmp_path, small_job, encoder):
    (tmp_path / "public").mkdir()
    with pytest.raises(DataError, match=r"proxy.folder: .*public: no metadata.csv"):
        read(tmp_path, small_job, encoder, tmp_path / "public")


def test_a_folder_of_several_sites(tmp_path, small_job, encoder):
    for name in ("a", "b"):
        write_set(tmp_path / "sites" / name)
    with pytest.raises(DataError, match="holds 2 sites' folders, expected one folder"):
        read(tmp_path, small_job, encoder, tmp_path / "sites")


def test_a_sites_own_folder(tmp_path, small_job, encoder):

    folder = write_set(tmp_path / "sites" / "north")
    sites = [SiteSettings(s.name, s, tmp_path / "x") for s in find_sites(tmp_path / "sites")]
    with pytest.raises(ConfigError, match="is the data of site north, which no server may see"):
        read(tmp_path, small_job, encoder, folder, sites)


def test_a_broken_record_is_named_without_its_words(tmp_path, small_job, encoder):
    folder = write_set(tmp_path / "public")
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"proxy\.folder") as refused:
        read(tmp_path, small_job, encoder, folder)
    assert refused.value.problems
    assert "spot 3" not in str(refused.value)
    assert "3.png" not in str(refused.value)


def test_the_command_refuses_in_one_line_and_writes_nothing(command, tmp_path, clip_folder):
    write_set(tmp_path / "data" / "north")
    ended = command(
        "simulate", "--data", tmp_path / "data", "--out", tmp_path / "runs",
        "--set", f"model.base={clip_folder}", "--set", f"proxy.folder={tmp_path / 'nowhere'}",
    )  # fmt: skip
    assert ended.code == 2
    assert "proxy.folder" in ended.line
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_made_up_pairs_are_of_patients_that_no_site_has(tmp_path, small_job, encoder):
    job = job_of(small_job, phantoms=40)
    write_proxy(tmp_path, job)
    folder = tmp_path / PROXY_FOLDER / "proxy"
    with (folder / "metadata.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 40
    assert all(row["patient_id"].startswith("proxy") for row in rows)
    assert all(row["file_name"] and row["text"] for row in rows)
    assert json.loads((folder / "dataset.json").read_text())["origin"] == "phantom"
    assert len(read_proxy(tmp_path, job, [], encoder)) == 40
    stamp = (folder / "metadata.csv").stat().st_mtime_ns
    write_proxy(tmp_path, job)
    assert (folder / "metadata.csv").stat().st_mtime_ns == stamp, "kept when a run goes on"
    assert proxy_phantoms(job).convention_rate == 0.0


def test_without_a_set_nothing_is_written(tmp_path, small_job):
    write_proxy(tmp_path, small_job)
    assert list(tmp_path.iterdir()) == []
