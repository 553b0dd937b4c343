"""The cache of prepared pictures: nothing is decoded twice, and no value or verdict changes."""

import errno
import fcntl
import os
import resource
import shutil
import stat
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from client.data import images, pixel_cache, pixel_rows
from client.data.images import Picture
from client.data.load import load_site
from client.data.pixel_cache import FILE, FileRows, fingerprint
from client.data.pixel_rows import PixelRows
from client.data.sources import SiteSource, find_sites
from shared.errors import DataError, StorageError
from tests.client.data.conftest import noise
from tests.client.data.test_dicom import write as write_dicom

Usage = namedtuple("Usage", "total used free")


def small(image):
    return np.asarray(image.resize((8, 8)))


@pytest.fixture
def decoded(monkeypatch):
    """How many pictures were decoded since the list was last cleared."""
    calls = []
    original = images._is_blank
    monkeypatch.setattr(images, "_is_blank", lambda image: calls.append(1) or original(image))
    return calls


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "state" / "pixels"


def load(site, cache=None, to_pixels=small, preprocessing="by eight"):
    (source,) = find_sites(site.path)
    return load_site(source, to_pixels, cache, preprocessing)


def is_mapped(data):
    return all(isinstance(split.pixels, np.memmap) for split in data.splits.values() if len(split))


def assert_like_without(site, data):
    """Equal in every value to what is loaded without a cache, and in its digest."""
    plain = load(site)
    assert data.sha256() == plain.sha256()
    for name, split in data.splits.items():
        np.testing.assert_array_equal(split.pixels, plain.splits[name].pixels)
        assert split.pixels.shape == plain.splits[name].pixels.shape


def broken(site, cache):
    with pytest.raises(DataError) as caught:
        load(site, cache)
    return [problem.rule for problem in caught.value.problems]


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- what is kept ---


def test_second_load_decodes_nothing_and_gives_the_same(site, cache, decoded, monkeypatch):
    first = load(site.write(), cache)
    assert len(decoded) == 8
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a decoder was opened"))
    second = load(site, cache, to_pixels=lambda _: pytest.fail("a picture was prepared"))
    monkeypatch.undo()
    for data in (first, second):
        assert is_mapped(data)
        assert_like_without(site, data)


def test_only_the_owner_can_read_it(site, cache):
    load(site.write(), cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert [path.name for path in cache.iterdir()] == [FILE]
    assert stat.S_IMODE((cache / FILE).stat().st_mode) == 0o600


def test_rows_are_taken_as_from_an_array(site, cache):
    pixels = load(site.write(), cache).splits["train"].pixels
    taken = pixels[np.array([2, 0])]
    np.testing.assert_array_equal(taken, np.stack([pixels[2], pixels[0]]))
    assert taken.flags.writeable
    assert not pixels.flags.writeable


def test_a_changed_file_is_noticed_even_with_its_size_and_time(site, cache, decoded):
    for index in range(8):  # without compression, so that sizes are equal
        noise(index).save(site.path / f"zebrafile{index}.png", compress_level=0)
    load(site.write(), cache)
    path = site.path / "zebrafile1.png"
    before = path.stat()
    noise(99).save(path, compress_level=0)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    decoded.clear()
    data = load(site, cache)
    assert len(decoded) == 1
    np.testing.assert_array_equal(data.splits["train"].pixels[1, :, :, 0], small(noise(99)))
    assert_like_without(site, data)


def test_new_moved_removed_and_emptied_rows(site, cache, decoded):
    load(site.write(), cache)
    (site.path / "zebrafile0.png").rename(site.path / "zebrafile-other.png")
    site.rows[0]["file_name"] = "zebrafile-other.png"
    site.rows[1]["split"], site.rows[5]["split"] = "test", "train"
    site.rows[2]["file_name"] = ""
    site.rows[3]["patient_id"] = site.rows[0]["patient_id"]
    del site.rows[4]
    noise(50).save(site.path / "zebrafile50.png")
    site.rows.insert(2, {**site.rows[0], "file_name": "zebrafile50.png"})
    decoded.clear()
    data = load(site.write(), cache)
    assert len(decoded) == 1  # the new one
    assert is_mapped(data)
    assert_like_without(site, data)
    decoded.clear()
    assert_like_without(site, load(site, cache))
    assert len(decoded) == 7  # all by the comparison


def test_grey_and_coloured_pictures(site, cache, decoded):
    for index, mode in ((3, "RGB"), (5, "RGB")):
        site.replace_picture(index, f"colour{index}.png", noise(index, mode=mode).save)
    for _ in range(2):
        data = load(site.write(), cache)
        assert data.splits["train"].pixels.shape == (4, 8, 8, 3)
        assert_like_without(site, data)
    for index in (3, 5):  # all that are left are grey, from a cache of three channels
        site.rows[index]["file_name"] = f"zebrafile{index}.png"
    decoded.clear()
    data = load(site.write(), cache)
    assert len(decoded) == 2
    assert data.splits["train"].pixels.shape == (4, 8, 8, 1)
    assert_like_without(site, data)


def test_colour_comes_first(site, cache):
    site.replace_picture(0, "colour.png", noise(0, mode="RGB").save)
    assert_like_without(site, load(site.write(), cache))
    assert_like_without(site, load(site, cache))


def test_equal_pictures_and_rows_without_one(site, cache):
    site.rows[1]["file_name"] = site.rows[0]["file_name"]
    site.rows[2]["file_name"] = site.rows[7]["file_name"] = ""
    for _ in range(2):
        data = load(site.write(), cache)
        assert data.splits["train"].pixels[2].max() == 0
        assert_like_without(site, data)


def test_a_site_of_texts_needs_no_cache(site, cache):
    data = load(site.without("file_name").write(), cache)
    assert data.splits["train"].pixels.shape == (4, 8, 8, 1)
    assert not cache.exists()


def test_sites_of_one_table_have_their_own(site, tmp_path, decoded):
    for index, row in enumerate(site.rows):
        row["site"] = ("a", "b")[index % 2]
    sources = find_sites(site.write().path, site_column="site")
    for _ in range(2):
        for source in sources:
            data = load_site(source, small, tmp_path / source.name, "by eight")
            assert data.sha256() == load_site(source, small).sha256()
    assert len(decoded) == 8 + 16  # once for the caches, and twice without


# --- verdicts ---


def test_rules_about_pictures_hold_for_known_ones(site, cache, decoded):
    Image.new("L", (24, 24), 7).save(site.path / "zebrafile2.png")
    load(site.write(), cache)
    held = pixel_cache.open_cache(cache, fingerprint("by eight", ()))
    assert [picture.blank for picture in held.pictures.values()].count(True) == 1
    site.rows[4]["file_name"] = site.rows[0]["file_name"]  # of training, now in validation too
    decoded.clear()
    assert broken(site.write(), cache) == ["image-in-two-splits"]
    assert not decoded


@pytest.mark.parametrize(
    ("content", "rule"),
    [(None, "image-missing"), (b"", "image-empty"), (b"text", "image-format"), (-9, None)],
)
def test_a_known_picture_that_is_damaged_later_is_refused(site, cache, content, rule):
    load(site.write(), cache)
    path = site.path / "zebrafile1.png"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    assert broken(site, cache) == [rule or "image-unreadable"]


def test_a_known_picture_under_the_name_of_another_format_is_refused(site, cache):
    load(site.write(), cache)
    (site.path / "zebrafile1.png").rename(site.path / "zebrafile1.dcm")
    site.rows[1]["file_name"] = "zebrafile1.dcm"
    assert broken(site.write(), cache) == broken(site, None)


def test_a_policy_that_is_withdrawn_counts_for_known_pictures(site, cache):
    site.replace_picture(1, "a.dcm", lambda path: write_dicom(path, PatientIdentityRemoved="NO"))
    (found,) = find_sites(site.write().path)
    accepting = SiteSource(
        found.name, found.table, found.root, accept=("dicom-identity-not-removed",)
    )
    plain = load_site(accepting, small)
    for _ in range(2):
        assert load_site(accepting, small, cache, "by eight").sha256() == plain.sha256()
    assert broken(site, cache) == ["dicom-identity-not-removed"]


def test_records_with_errors_leave_nothing_behind(site, cache):
    site.rows[7]["text"] = "  "
    assert broken(site.write(), cache) == ["text-blank"]
    assert not list(cache.iterdir())


def test_an_interruption_leaves_nothing_behind(site, cache):
    calls = []

    def interrupted(image):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return small(image)

    with pytest.raises(KeyboardInterrupt):
        load(site.write(), cache, interrupted)
    assert not list(cache.iterdir())


# --- what is not trusted ---


@pytest.mark.parametrize("place", [0, 300, 511, 520, 900, -1, -20, -26, -50, -58, -70])
def test_one_bit_anywhere_is_noticed(site, cache, decoded, place):
    """Rows are the first 512 bytes, the trailer the last 58, the index between them."""
    load(site.write(), cache)
    damage(cache / FILE, place)
    decoded.clear()
    data = load(site, cache)
    assert len(decoded) == 8
    assert is_mapped(data)
    assert_like_without(site, data)


@pytest.mark.parametrize("length", [0, 1, 57, 58, 512, 600, -1, 10**5])
def test_a_cache_of_another_length_is_not_used(site, cache, decoded, length):
    load(site.write(), cache)
    whole = (cache / FILE).read_bytes()
    (cache / FILE).write_bytes(whole[:length] if length < 10**5 else whole + b"\0" * length)
    decoded.clear()
    assert_like_without(site, load(site, cache))
    assert len(decoded) == 8 + 8
    assert (cache / FILE).read_bytes() == whole


def test_whatever_else_has_that_name(site, cache):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(np.random.default_rng(0).bytes(5000))
    assert is_mapped(load(site.write(), cache))
    (cache / FILE).unlink()
    (cache / FILE).mkdir()
    assert_like_without(site, load(site, cache))


def test_another_preprocessing_or_other_code_prepares_anew(site, cache, decoded, monkeypatch):
    def dark(image):
        return small(image) // 2

    load(site.write(), cache)
    decoded.clear()
    data = load(site, cache, dark, "half as bright")
    assert len(decoded) == 8
    np.testing.assert_array_equal(data.splits["train"].pixels[0, :, :, 0], small(noise(0)) // 2)
    decoded.clear()
    monkeypatch.setattr(pixel_cache, "_decoding", lambda: "another version of Pillow")
    load(site, cache, dark, "half as bright")
    assert len(decoded) == 8


def test_the_fingerprint_changes_with_every_line_that_decodes(monkeypatch, tmp_path):
    before = fingerprint("p", ())
    for name in pixel_cache._CODE:
        content = (tmp_path / name).write_bytes
        for other in pixel_cache._CODE:
            shutil.copy(images.__file__.replace("images.py", other), tmp_path / other)
        content((tmp_path / name).read_bytes() + b"# changed\n")
        monkeypatch.setattr(pixel_cache, "__file__", str(tmp_path / "pixel_cache.py"))
        pixel_cache._decoding.cache_clear()
        assert fingerprint("p", ()) != before
        monkeypatch.undo()
    pixel_cache._decoding.cache_clear()
    assert fingerprint("p", ()) == before
    assert fingerprint("p", ("dicom-burned-in-text",)) != before
    assert fingerprint("q", ()) != before


def test_a_cache_without_a_word_on_the_preprocessing_is_a_mistake(site, cache):
    with pytest.raises(ValueError, match="preprocessing"):
        load(site.write(), cache, preprocessing="")


# --- no space, no folder ---


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name == pixel_rows.__name__]


def test_a_disk_that_is_too_small_is_known_before_anything_is_decoded(
    site, cache, monkeypatch, caplog
):
    free = Usage(10**9, 10**9 - 511, 511)  # the eight rows take 512 bytes
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: free)
    data = load(site.write(), cache)
    assert not is_mapped(data)
    assert_like_without(site, data)
    (message,) = warned(caplog)
    assert f"{cache}: " in message
    assert "512 bytes" in message
    assert "no space left on the disk" in message
    assert "kept in memory" in message
    assert "zebra" not in message
    load(site, cache)
    assert len(warned(caplog)) == 1  # said once
    assert not list(cache.iterdir())


@pytest.mark.parametrize("written", [0, 3, 7, 8])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_disk_that_fills_up_meanwhile(site, cache, monkeypatch, caplog, written, mode):
    """What was in the file goes on in memory; after eight rows the index does not fit."""
    site.replace_picture(4, "last.png", noise(4, mode=mode).save)
    original, calls = FileRows._write_at, []

    def full(self, place, content):
        calls.append(1)
        if len(calls) > written:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, place, content)

    monkeypatch.setattr(FileRows, "_write_at", full)
    data = load(site.write(), cache)
    assert not is_mapped(data)
    assert_like_without(site, data)
    assert "no space left on the disk" in "".join(warned(caplog))
    assert not list(cache.iterdir())


def test_a_file_that_takes_only_part_of_what_it_is_given(site, cache, caplog):
    """A limit of the system, not a mock: the rows fit, the index is cut in the middle."""
    site.write()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        data = load(site, cache)
        left = list(cache.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warned(caplog)) == 1
    assert not left
    assert_like_without(site, data)


def test_a_folder_that_cannot_be_made(site, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file in its place")
    assert_like_without(site, load(site.write(), cache))
    assert len(warned(caplog)) == 1


def test_neither_disk_nor_memory(site, cache, monkeypatch):
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: Usage(1, 1, 0))
    monkeypatch.setattr(pixel_rows.os, "sysconf", lambda _: 16)  # 16 pages of 16 bytes
    with pytest.raises(StorageError, match=r"take 512 bytes .* memory of 256 bytes") as caught:
        load(site.write(), cache)
    assert str(cache) in str(caught.value)
    assert "zebra" not in str(caught.value)


def test_pictures_that_are_kept_in_memory_and_do_not_fit(site, monkeypatch):
    monkeypatch.setattr(pixel_rows.os, "sysconf", lambda _: 16)
    with pytest.raises(StorageError, match=r'take 512 bytes.*256 bytes.*pictures = "disk"'):
        load(site.write())


# --- several processes ---


def rows_of(cache, value):
    rows = PixelRows(2, cache, "made")
    for row in range(2):
        pixels = np.full((4, 4), value + row, np.uint8)
        rows.put(row, pixels, Picture("PNG", "L", 4, 4, f"digest {value + row}"))
    return rows


def test_two_at_once_and_the_last_whole_one_stays(cache):
    first, second = rows_of(cache, 10), rows_of(cache, 20)
    assert len(list(cache.iterdir())) == 2
    of_first = first.finish()
    of_second = second.finish()
    assert [path.name for path in cache.iterdir()] == [FILE]
    assert of_first[:, 0, 0, 0].tolist() == [10, 11]  # still mapped, though replaced
    assert of_second[:, 0, 0, 0].tolist() == [20, 21]
    kept = pixel_cache.open_cache(cache, "made")
    assert kept.layout == ("digest 20", "digest 21")


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(site, cache):
    cache.mkdir(parents=True)
    left, used = cache / "pixels-left.unfinished", cache / "pixels-used.unfinished"
    left.write_bytes(b"rows")
    with used.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        load(site.write(), cache)
        assert {path.name for path in cache.iterdir()} == {FILE, used.name}


def test_a_file_taken_for_abandoned_before_it_was_locked_is_made_again(cache, monkeypatch):
    cache.mkdir(parents=True)
    original, removed = fcntl.flock, []

    def late(file, operation):
        if operation == fcntl.LOCK_EX and not removed:
            removed.append(next(cache.iterdir()))
            removed[0].unlink()
        original(file, operation)

    monkeypatch.setattr(pixel_cache.fcntl, "flock", late)
    assert rows_of(cache, 30).finish()[1, 0, 0, 0] == 31
    assert removed
    assert [path.name for path in cache.iterdir()] == [FILE]
