"""Site folders: deterministic, split by patient, and each kind with its own rows."""

import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from simulations.phantoms.scanner import Scanner
from simulations.phantoms.sites import PhantomSite, draw_records
from simulations.phantoms.studies import FINDINGS
from simulations.phantoms.writer import write_site

RATES = dict.fromkeys(FINDINGS, 0.2)


def site(kind="paired", **changes):
    fixed = {"size": 50, "rates": RATES, "test_size": 20, "convention_rate": 0.3}
    return PhantomSite("st-kilda", "icu", kind=kind, **{**fixed, **changes})


def table(folder):
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_equal_seeds_give_equal_bytes(tmp_path, kind):
    write_site(tmp_path / "a", site(kind), 1)
    write_site(tmp_path / "b", site(kind), 1)
    write_site(tmp_path / "c", site(kind), 2)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_a_paired_site_has_both_sides_of_every_record(tmp_path):
    write_site(tmp_path, site(), 1)
    rows = table(tmp_path)
    assert list(rows[0]) == ["file_name", "text", "labels", "patient_id", "split"]
    assert len(rows) == 70
    assert all(row["file_name"] and row["text"] for row in rows)
    assert len({row["file_name"] for row in rows}) == 70
    for row in rows:
        with Image.open(tmp_path / row["file_name"]) as picture:
            assert (picture.size, picture.mode) == ((96, 96), "L")


@pytest.mark.parametrize(
    ("kind", "pictures", "texts"), [("image", 50, 0), ("text", 0, 50), ("unpaired", 50, 50)]
)
def test_training_rows_hold_what_the_kind_says(tmp_path, kind, pictures, texts):
    write_site(tmp_path, site(kind), 1)
    rows = table(tmp_path)
    training = [row for row in rows if row["split"] != "test"]
    assert sum(bool(row["file_name"]) for row in training) == pictures
    assert sum(bool(row["text"]) for row in training) == texts
    assert not any(row["file_name"] and row["text"] for row in training)
    test = [row for row in rows if row["split"] == "test"]
    assert len(test) == 20
    assert all(row["file_name"] and row["text"] for row in test)
    assert len(list((tmp_path / "images").iterdir())) == pictures + 20


def test_both_halves_of_an_unpaired_record_keep_labels_and_are_shuffled_apart(tmp_path):
    write_site(tmp_path, site("unpaired"), 1)
    training = [row for row in table(tmp_path) if row["split"] != "test"]
    pictures = sorted((r["patient_id"], r["labels"]) for r in training if r["file_name"])
    assert pictures == sorted((r["patient_id"], r["labels"]) for r in training if r["text"])
    order = [row["patient_id"] for row in training if row["file_name"]]
    assert order != [row["patient_id"] for row in training if row["text"]]


def test_labels_name_the_findings_and_normal_is_not_empty(tmp_path):
    write_site(tmp_path, site(), 1)
    labels = [row["labels"] for row in table(tmp_path)]
    assert "none" in labels
    assert all(set(cell.split(";")) <= {*FINDINGS, "none"} for cell in labels)
    truth = [
        ";".join(n for n in FINDINGS if n in r.study.findings) for r in draw_records(site(), 1)
    ]
    assert sorted(labels) == sorted(cell or "none" for cell in truth)


@pytest.mark.parametrize("seed", range(12))
def test_splits_are_exact_and_by_patient(seed):
    records = draw_records(site(size=48, test_size=160), seed)
    patients = {split: set() for split in ("train", "val", "test")}
    for record in records:
        patients[record.split].add(record.study.patient)
    sizes = {split: sum(record.split == split for record in records) for split in patients}
    assert sizes == {"train": 39, "val": 9, "test": 160}
    assert not patients["train"] & patients["val"]
    assert not patients["train"] & patients["test"]
    assert not patients["val"] & patients["test"]


def test_a_small_site_still_has_eight_validation_studies():
    records = draw_records(site(size=20), 3)
    assert sum(record.split == "val" for record in records) == 8


def test_prompts_are_in_the_register_of_the_site_or_standard_without_texts(tmp_path):
    for kind, expected in (("paired", "cm"), ("image", "mild cardiomegaly")):
        write_site(tmp_path / kind, site(kind, size=16, test_size=8), 1)
        content = json.loads((tmp_path / kind / "prompts.json").read_text(encoding="utf-8"))
        assert list(content) == sorted(FINDINGS)
        assert expected in content["cardiomegaly"]["positive"]


def test_the_description_says_what_the_data_are(tmp_path):
    write_site(tmp_path, site("text", size=16, test_size=8), 1)
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    assert content["origin"] == "phantom"
    assert content["licence"] == "synthetic"
    assert content["kind"] == "text"
    assert content["style"] == "icu"
    assert "simulation-only audit set" in content["note"]


def test_a_folder_is_never_overwritten(tmp_path):
    write_site(tmp_path, site(size=16, test_size=8), 1)
    with pytest.raises(FileExistsError, match=r"metadata\.csv"):
        write_site(tmp_path, site(size=16, test_size=8), 1)


def test_a_misspelt_site_is_refused():
    with pytest.raises(ValueError, match="style 'latin'"):
        PhantomSite("a", "latin", 100)
    with pytest.raises(ValueError, match=r"unknown findings \['gout'\]"):
        PhantomSite("a", "std", 100, rates={"gout": 0.1})


def test_pictures_do_not_depend_on_the_kind_of_site(tmp_path):
    plain = Scanner(noise=(0.01, 0.02))
    for kind in ("paired", "image"):
        write_site(tmp_path / kind, site(kind, size=16, test_size=8, scanner=plain), 1)
    first, second = (
        sorted(np.asarray(Image.open(p)).tobytes() for p in (tmp_path / k / "images").iterdir())
        for k in ("paired", "image")
    )
    assert first == second
