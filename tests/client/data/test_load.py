"""Loading: the arrays, the same from every kind of table, and only what passed every rule."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.data.load import load_site
from client.data.sources import SiteSource, find_sites
from client.data.splits import SHARES, split_of
from shared.errors import DataError


def grey(image):
    return np.asarray(image.convert("L").resize((8, 8)))


def as_it_is(image):
    return np.asarray(image.resize((8, 8)))


def load(site, to_pixels=grey, **options):
    (source,) = find_sites(site.path, **options)
    return load_site(source, to_pixels)


def assert_same(first, second):
    assert (first.findings, first.prompts, first.origin) == (
        second.findings,
        second.prompts,
        second.origin,
    )
    for name, split in first.splits.items():
        other = second.splits[name]
        assert split.texts == other.texts
        for part in ("pixels", "has_image", "has_text", "labels", "labelled", "patients"):
            np.testing.assert_array_equal(getattr(split, part), getattr(other, part))


def test_arrays_of_a_site(site):
    site.rows[1]["text"] = ""
    site.rows[2].update(file_name="", labels="")
    site.rows[3]["patient_id"] = site.rows[0]["patient_id"]
    data = load(site.write())
    train = data.splits["train"]
    assert train.pixels.shape == (4, 8, 8, 1)
    assert train.pixels.dtype == np.uint8
    assert train.has_image.tolist() == [True, True, False, True]
    assert train.pixels[2].max() == 0
    assert train.texts == (
        "zebra-report number 0", "", "zebra-report number 2", "zebra-report number 3"
    )  # fmt: skip
    assert train.has_text.tolist() == [True, False, True, True]
    assert train.labels.tolist() == [[0.0], [1.0], [0.0], [1.0]]
    assert train.labelled.tolist() == [True, True, False, True]
    assert train.patients.tolist() == [0, 1, 2, 0]
    assert train.patients.dtype == np.int64
    assert data.kind == "paired"
    assert data.prompts["edema"].negative == ("no edema",)
    assert data.origin.origin == "public"
    expected = grey(Image.open(site.path / "zebrafile3.png"))
    np.testing.assert_array_equal(train.pixels[3, :, :, 0], expected)
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [4, 2, 2]


def test_csv_json_lines_and_parquet_are_the_same(site):
    import pyarrow as pa
    import pyarrow.parquet as pq

    site.rows[1].update(text="", labels="edema;mass; big  one")
    site.rows[2].update(file_name="", labels="")
    site.rows[3]["text"] = 'quoted "text", with\ncomma and línea'
    first = load(site.write())
    lists = [
        {key: value or None for key, value in row.items()} | {"patient_id": index}
        for index, row in enumerate(site.rows)
    ]
    lists[1]["labels"] = ["edema", "mass", "big one"]
    (site.path / "metadata.csv").unlink()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in lists)
    site.write_text(lines + "\n\n", "metadata.jsonl")
    assert_same(first, load(site))
    (site.path / "metadata.jsonl").unlink()
    lists[1]["labels"] = "edema;mass;big one"
    pq.write_table(pa.Table.from_pylist(lists), site.path / "metadata.parquet")
    assert_same(first, load(site))
    assert first.findings == ("big one", "edema", "mass")


def test_numbers_and_gaps_of_parquet_become_cells(site):
    import pandas as pd

    frame = pd.DataFrame(site.rows)
    frame["patient_id"] = [1.0, 2.0, np.nan, 4.0, 5.0, 6.0, 7.0, 8.0]
    frame.to_parquet(site.path / "metadata.parquet")
    problems = {problem.rule: problem.where for problem in site.check().problems}
    assert problems == {"patient-missing": 4}


def test_colours_are_kept_and_grey_beside_them_is_repeated(site):
    colour = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    site.replace_picture(1, "colour.png", Image.fromarray(colour).save)
    data = load(site.write(), as_it_is)
    train = data.splits["train"]
    assert train.pixels.shape == (4, 8, 8, 3)
    assert np.ptp(train.pixels[0], axis=-1).max() == 0
    assert np.ptp(train.pixels[1], axis=-1).max() > 0
    assert data.splits["test"].pixels.shape == (2, 8, 8, 3)


def test_every_picture_is_decoded_once(site, monkeypatch):
    loads, turned = [], []
    original = Image.Image.getextrema
    monkeypatch.setattr(Image.Image, "getextrema", lambda self: loads.append(1) or original(self))
    load(site.write(), lambda image: turned.append(1) or grey(image))
    assert len(loads) == len(turned) == 8


@pytest.mark.parametrize(
    ("option", "kind", "towers"),
    [("image_only", "image", ("image",)), ("text_only", "text", ("text",))],
)
def test_one_modality(site, option, kind, towers):
    data = load(site.write(), **{option: ["north"]})
    assert data.kind == kind
    assert data.towers == towers
    train = data.splits["train"]
    assert train.has_image.any() == (kind == "image")
    assert train.has_text.any() == (kind == "text")
    assert train.pixels.shape == (4, 8, 8, 1)
    assert set(train.texts) == {""} or kind == "text"
    assert train.labels.sum() == 2


def test_unpaired_site(site):
    for index, row in enumerate(site.rows):
        row["file_name" if index % 2 else "text"] = ""
    data = load(site.write())
    assert data.kind == "unpaired"
    assert data.splits["train"].counts().pairs == 0
    assert data.examples("image") == data.examples("text") == 2


def test_site_without_labels_prompts_and_dataset(site):
    for name in ("prompts.json", "dataset.json"):
        (site.path / name).unlink()
    data = load(site.without("labels").write())
    assert data.findings == ()
    assert data.splits["train"].labels.shape == (4, 0)
    assert not data.splits["train"].labelled.any()
    assert data.prompts == {}
    assert data.origin.origin == "private"


def test_files_of_a_site_in_a_common_table(site):
    """A site's own folder beside the table comes first, then the table's folder."""
    for index, row in enumerate(site.rows):
        row["site"] = ("a", "b")[index % 2]
    (site.path / "a").mkdir()
    site.json("a/dataset.json", {"origin": "phantom"})
    site.write()
    first, second = find_sites(site.path, site_column="site")
    assert load_site(first, grey).origin.origin == "phantom"
    assert load_site(second, grey).origin.origin == "public"


def test_rows_with_errors_are_never_loaded(site):
    site.rows[1]["text"] = "  "
    (site.path / "zebrafile0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 problems .* row 2, column 'file_name'") as caught:
        load(site.write())
    assert [problem.rule for problem in caught.value.problems] == ["image-empty", "text-blank"]
    assert "zebra" not in str(caught.value) + str(caught.value.problems)


def test_warnings_do_not_keep_a_site_from_loading(site):
    data = load(site.without("split").without("patient_id").write())
    assert sum(len(split) for split in data.splits.values()) == 8


# --- splits by patient ---


def rows_of(patients, path):
    lines = ["text,patient_id"]
    lines += [f"text {index},{patient}" for index, patient in enumerate(patients)]
    path.mkdir(exist_ok=True)
    (path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")


patient_lists = st.lists(st.integers(0, 30).map(lambda n: f"p{n}"), min_size=60, max_size=90)


@settings(max_examples=30, deadline=None)
@given(patients=patient_lists, order=st.randoms())
def test_no_patient_is_in_two_splits_in_any_order(tmp_path_factory, patients, order):
    folder = tmp_path_factory.mktemp("site")
    found = []
    for _ in range(2):
        rows_of(patients, folder)
        source = SiteSource("site", folder / "metadata.csv", folder)
        data = load_site(source, grey)
        where = {}
        for name, split in data.splits.items():
            for text in split.texts:
                where[patients[int(text.split()[1])]] = where.get(
                    patients[int(text.split()[1])], set()
                ) | {name}
        assert all(len(names) == 1 for names in where.values())
        found.append(where)
        order.shuffle(patients)
    assert found[0] == found[1]


@settings(max_examples=20, deadline=None)
@given(prefix=st.text(max_size=20))
def test_shares_of_many_patients(prefix):
    """3000 patients: within five standard errors (about 4 and 3 points) of 70, 15 and 15 %."""
    splits = [split_of(f"{prefix}{number}") for number in range(3000)]
    for name, share in SHARES.items():
        error = (share * (1 - share) / 3000) ** 0.5
        assert abs(splits.count(name) / 3000 - share) < 5 * error


def test_the_split_of_a_patient_never_changes():
    """Pinned: another hash or salt would turn held-out patients into training data."""
    pinned = ["val", "test", "test", "train", "train", "train", "test", "val"]
    assert [split_of(f"p{number}") for number in range(8)] == pinned


def test_rows_without_a_patient_keep_their_split_when_rows_are_added(site):
    site.without("split").without("patient_id")
    before = {
        text: name for name, split in load(site.write()).splits.items() for text in split.texts
    }
    site.rows.insert(0, {"file_name": "", "text": "zebra-report new", "labels": ""})
    after = {
        text: name for name, split in load(site.write()).splits.items() for text in split.texts
    }
    assert before.items() <= after.items()
