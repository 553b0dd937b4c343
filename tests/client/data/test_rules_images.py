"""Rules about pictures, seen from the table: each has its row and its column."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.rules.catalogue import RULES


def noise(seed, size=24):
    values = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(values)


def dicom(path, **tags):
    """The least of a DICOM file that may be used, unless ``tags`` say otherwise."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientIdentityRemoved": "YES",
        "Modality": "DX",
        "Rows": 24,
        "Columns": 24,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": noise(99).tobytes(),
        "PatientName": "zebrapatient",
        **tags,
    }
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def cut(path):
    noise(0, 64).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:200])


def encapsulated(path):
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless

    dicom(path, syntax=JPEGLSLossless, PixelData=encapsulate([b"\xff\xd8\xff\xf7" + b"\0" * 64]))


BROKEN = {
    "image-missing": lambda path: path,
    "image-empty": lambda path: path.write_bytes(b""),
    "image-format": lambda path: path.write_bytes(b"zebra-report" * 20),
    "image-unreadable": cut,
    "image-animated": lambda path: noise(0).save(
        path, format="GIF", save_all=True, append_images=[noise(1)]
    ),
    "image-too-large": lambda path: Image.new("1", (8001, 8000)).save(path, format="PNG"),
    "image-too-small": lambda path: noise(0, 15).save(path, format="PNG"),
    "image-blank": lambda path: Image.new("RGB", (24, 24), (9, 8, 7)).save(path, format="PNG"),
    "dicom-identity-not-removed": lambda path: dicom(path, PatientIdentityRemoved="NO"),
    "dicom-burned-in-text": lambda path: dicom(path, BurnedInAnnotation="YES"),
    "dicom-secondary-capture": lambda path: dicom(path, Modality="US"),
    "dicom-compression": encapsulated,
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_picture_is_named_by_row_column_and_rule(site, rule):
    site.replace_picture(1, "zebrafile-x", BROKEN[rule])
    check = site.write().check()
    (problem,) = check.problems
    assert (problem.where, problem.column, problem.rule) == (3, "file_name", rule)
    assert "zebra" not in str(problem)


def test_a_good_dicom_file_is_no_problem(site):
    site.replace_picture(1, "zebrafile-x", dicom)
    assert site.write().rules() == []


def test_every_broken_picture_is_collected(site):
    rules = list(BROKEN)[:8]
    for index, rule in enumerate(rules):
        site.replace_picture(index, f"x{index}", BROKEN[rule])
    found = {problem.where: problem.rule for problem in site.write().check().problems}
    assert found | dict(enumerate(rules, start=2)) == found


@pytest.mark.parametrize(
    "name",
    ["../north/zebrafile1.png", "/etc/hostname", "a/../zebrafile1.png", "images\\a.png", "C:a.png",
     "~/a.png", "zebra\x00file.png", "zebra\nfile.png"],
)  # fmt: skip
def test_a_path_out_of_the_folder(site, name):
    site.rows[1]["file_name"] = name
    (problem,) = site.write().check().problems
    assert (problem.where, problem.rule) == (3, "image-path")
    assert "zebra" not in problem.message


def test_a_link_out_of_the_folder(site, tmp_path):
    noise(50).save(tmp_path / "outside.png")
    (site.path / "zebrafile-link.png").symlink_to(tmp_path / "outside.png")
    site.rows[1]["file_name"] = "zebrafile-link.png"
    assert site.write().rules() == ["image-path"]


@pytest.mark.parametrize("folder_first", [True, False])
def test_links_are_followed_in_every_part_of_a_path(site, tmp_path, folder_first):
    """Out through a folder; back in through a file in it; round in a circle; names too long."""
    outside = tmp_path / "outside"
    outside.mkdir()
    noise(50).save(outside / "a.png")
    (outside / "back.png").symlink_to(site.path / "zebrafile2.png")
    (site.path / "images").symlink_to(outside)
    (site.path / "circle").symlink_to(site.path / "circle")
    (site.path / "zebrafile-link.png").symlink_to(site.path / "zebrafile3.png")
    names = ["images/a.png", "images/back.png", "circle", "zebrafile-link.png", "x" * 300 + ".png"]
    order = names if folder_first else names[::-1]
    for row, name in zip(site.rows[:5], order, strict=True):
        row["file_name"] = name
    found = {problem.where: problem.rule for problem in site.write().check().errors}
    rules = {order[row - 2]: rule for row, rule in found.items() if row is not None}
    assert rules.pop(names[4]) == "image-unreadable"
    assert rules == {"images/a.png": "image-path", "circle": "image-path"}


@pytest.mark.parametrize("name", [".", "./", "images/", "images/.", "images/none.png", "no/a.png"])
def test_a_path_to_a_folder_or_to_nothing(site, name):
    (site.path / "images").mkdir()
    site.rows[1]["file_name"] = name
    (problem,) = site.write().check().problems
    assert (problem.where, problem.rule) == (3, "image-missing")


def test_a_site_folder_may_itself_be_a_link_and_have_folders(site, tmp_path):
    (site.path / "images").mkdir()
    (site.path / "zebrafile1.png").rename(site.path / "images" / "a.png")
    site.rows[1]["file_name"] = "images/a.png"
    site.write()
    (tmp_path / "link").symlink_to(site.path)
    site.path = tmp_path / "link"
    assert site.rules() == []


def test_the_same_picture_twice(site):
    """Once the same file, once another file of the same bytes."""
    site.rows[1]["file_name"] = site.rows[0]["file_name"]
    (site.path / "copy.png").write_bytes((site.path / "zebrafile2.png").read_bytes())
    site.rows[3]["file_name"] = "copy.png"
    (problem,) = site.write().check().problems
    assert (problem.rule, problem.severity) == ("image-duplicate", "warning")
    assert problem.message.startswith("rows 3, 5:")


def test_the_same_picture_in_two_splits(site):
    site.rows[7]["file_name"] = site.rows[0]["file_name"]
    check = site.write().check()
    (problem,) = check.errors
    assert (problem.where, problem.rule) == (2, "image-in-two-splits")
    assert "row 9" in problem.message


def test_quick_reads_headers_only(site):
    site.replace_picture(0, "cut", cut)
    site.replace_picture(1, "empty", BROKEN["image-empty"])
    site.replace_picture(2, "name", BROKEN["dicom-identity-not-removed"])
    check = site.write().check(quick=True)
    assert [p.rule for p in check.problems] == ["image-empty", "dicom-identity-not-removed"]
    assert check.quick


def test_text_only_sites_need_no_pictures(site):
    for row in site.rows:
        row["file_name"] = "zebrafile-gone.png"
    check = site.write().check(text_only=["north"])
    assert check.problems == ()
    assert check.kind == "text"


def test_every_rule_has_a_test():
    """A rule whose name no test knows could vanish unnoticed."""
    folder = Path(__file__).parent
    words = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_*.py"))
    quoted = set(re.findall(r'"([a-z0-9-]+)"', words))
    assert not {rule.name for rule in RULES} - quoted


def test_json_is_the_same_as_csv_for_problems(site):
    site.replace_picture(1, "zebrafile-x", BROKEN["image-empty"])
    site.write_text("\n".join(json.dumps(row) for row in site.rows), "metadata.jsonl")
    (problem,) = site.check().problems
    assert (problem.where, problem.rule) == (2, "image-empty")  # the line, as an editor counts
