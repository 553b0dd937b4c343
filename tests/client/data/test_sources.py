"""Where sites are found: folders, one folder, one table with a site column, a table's file."""

import csv
from pathlib import Path

import numpy as np
import pytest

from client.data.load import load_site
from client.data.sources import SiteSource, find_sites
from shared.errors import ConfigError, DataError


def names(sources):
    return [source.name for source in sources]


@pytest.fixture
def federation(site, tmp_path):
    """Three site folders; the first is the fixture's."""
    for name in ("south", "east"):
        type(site)(tmp_path / "all" / name).fill().write()
    (tmp_path / "all" / ".cache").mkdir()
    site.path.rename(tmp_path / "all" / "north")
    site.path = tmp_path / "all" / "north"
    site.write()
    return tmp_path / "all"


@pytest.fixture
def common(site):
    """One table for three sites, like a published collection."""
    for index, row in enumerate(site.rows):
        row["site"] = ("north", "south")[index % 2]
        row["image"] = row.pop("file_name")
    site.write()
    return site


def test_a_folder_of_site_folders(federation):
    sources = find_sites(federation)
    assert names(sources) == ["east", "north", "south"]
    assert sources[0].root == federation / "east"
    assert sources[0].table == federation / "east" / "metadata.csv"


def test_one_site_folder(federation):
    (source,) = find_sites(federation / "north")
    assert source == SiteSource("north", federation / "north/metadata.csv", federation / "north")


def test_the_file_of_a_table(federation):
    (source,) = find_sites(federation / "north" / "metadata.csv")
    assert source.name == "north"
    (federation / "north" / "metadata.csv").rename(federation / "north" / "pairs.csv")
    (source,) = find_sites(federation / "north" / "pairs.csv")
    assert source.name == "pairs"
    assert source.root == federation / "north"


def test_the_first_kind_of_table_is_read(federation):
    (federation / "north" / "metadata.parquet").write_bytes(b"")
    assert find_sites(federation / "north")[0].table.name == "metadata.csv"


@pytest.mark.parametrize("as_file", [False, True])
def test_one_table_with_a_site_column(common, as_file):
    folder = common.path / "metadata.csv" if as_file else common.path
    sources = find_sites(folder, site_column="site")
    assert names(sources) == ["north", "south"]
    data = load_site(sources[1], np.asarray)
    assert data.splits["train"].texts == ("zebra-report number 1", "zebra-report number 3")


def test_only_image_only_and_text_only(federation):
    sources = find_sites(
        federation, image_only=["east"], text_only=["north"], only=["east", "north"]
    )
    assert [(s.name, s.modality) for s in sources] == [("east", "image"), ("north", "text")]


@pytest.mark.parametrize("option", ["only", "image_only", "text_only"])
def test_unknown_sites_are_named_with_the_nearest(federation, option):
    with pytest.raises(ConfigError, match="no site 'nort'; did you mean 'north'"):
        find_sites(federation, **{option: ["nort"]})


def test_a_site_cannot_be_both(federation):
    with pytest.raises(ConfigError, match="both image_only and text_only"):
        find_sites(federation, image_only=["east"], text_only=["east"])


def test_unknown_name_in_the_mapping(federation):
    with pytest.raises(ConfigError, match="'filename'; did you mean 'file_name'"):
        find_sites(federation, columns={"filename": "image"})
    with pytest.raises(ConfigError, match="mapped twice"):
        find_sites(federation, columns={"text": "a", "labels": "a"})


def test_unknown_site_column_is_named_with_the_nearest(common):
    with pytest.raises(ConfigError, match=r"no column 'Site' .* did you mean 'site'"):
        find_sites(common.path, site_column="Site")
    with pytest.raises(ConfigError, match="read as patient_id already"):
        find_sites(common.path, site_column="patient_id")


def test_folders_without_a_table(tmp_path, federation):
    with pytest.raises(ConfigError, match="no such folder"):
        find_sites(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no metadata\.csv"):
        find_sites(federation / ".cache")
    with pytest.raises(DataError, match="a site column needs one table"):
        find_sites(federation, site_column="site")
    (federation / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"expected a folder or a \.csv"):
        find_sites(federation / "notes.txt")


def test_a_site_that_lost_its_table_is_not_left_out_silently(federation):
    (federation / "east" / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"pictures but no metadata\.csv"):
        find_sites(federation)
    assert names(find_sites(federation, only=["north"])) == ["north"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "x" * 201, "a\x1bb"])
def test_site_names_that_are_no_names(common, name):
    common.rows[4]["site"] = name
    common.write()
    with pytest.raises(DataError, match="first is row 6"):
        find_sites(common.path, site_column="site")


def test_rows_are_found_again_after_the_table_changed(common):
    assert len(find_sites(common.path, site_column="site")) == 2
    for row in common.rows:
        row["site"] = "west and more"
    common.write()
    assert names(find_sites(common.path, site_column="site")) == ["west and more"]


def test_a_table_like_a_published_collection_needs_no_mapping(tmp_path):
    """The image column is called ``image``; other columns are not read."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "image", "split", "patient_id", "site", "text", "text_masked"])
        for index in range(12):
            image = Image.effect_noise((20, 24), 50 + index)
            image.save(tmp_path / "images" / f"{index}.jpg")
            split = ("train", "train", "val", "test")[index // 2 % 4]
            site = ("iberia", "uk")[index % 2]
            cells = [index, f"images/{index}.jpg", split, f"p{index}", site]
            writer.writerow([*cells, f"note {index}", f"note [dx] {index}"])
    sources = find_sites(Path(tmp_path), site_column="site")
    size = (8, 8)
    for source in sources:
        data = load_site(source, lambda im: np.asarray(im.resize(size)))
        assert data.kind == "paired"
        assert data.origin.origin == "private"
    masked = find_sites(tmp_path, site_column="site", columns={"text": "text_masked"})
    data = load_site(masked[0], lambda im: np.asarray(im.resize(size)))
    assert data.splits["train"].texts[0] == "note [dx] 0"
