"""Pictures: what is refused by which rule, and the exact 8-bit values of what is not."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from client.data import images
from client.data.images import read_picture
from client.data.pixels import scaled, stretched, windowed
from shared.errors import DataError


def noise(seed, shape=(24, 24)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused(path, **options):
    with pytest.raises(DataError) as caught:
        read_picture(path, **options)
    return [problem.rule for problem in caught.value.problems]


def pixels_of(path):
    _, image = read_picture(path)
    return image.mode, np.asarray(image)


def bomb(path, width, height):
    """A PNG that claims to be huge; its data are a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    path.write_bytes(content)


# --- refused ---


def test_missing_file_and_folder_and_pipe(tmp_path):
    assert refused(tmp_path / "a.png") == ["image-missing"]
    assert refused(tmp_path) == ["image-missing"]
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    assert refused(tmp_path / "pipe.png") == ["image-missing"]


@pytest.mark.parametrize("quick", [False, True])
def test_empty_file(tmp_path, quick):
    (tmp_path / "a.png").write_bytes(b"")
    assert refused(tmp_path / "a.png", quick=quick) == ["image-empty"]


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"text", b"<svg/>", b"%PDF-1.4"])
def test_other_formats(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert refused(tmp_path / "a.png") == ["image-format"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file(tmp_path, name, share):
    path = tmp_path / name
    Image.fromarray(noise(1, (64, 64))).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refused(path)[0] in {"image-unreadable", "image-format"}


def test_png_with_a_flipped_bit(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path, compress_level=0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refused(path) == ["image-unreadable"]


@pytest.mark.parametrize("missing", [8, 12, 18])
def test_png_without_its_end(tmp_path, missing):
    """Every pixel can be decoded, but the copy stopped before the end."""
    path = tmp_path / "a.png"
    Image.fromarray(noise(1, (64, 64))).save(path)
    path.write_bytes(path.read_bytes()[:-missing])
    assert refused(path) == ["image-unreadable"]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("quick", [False, True])
def test_animated_file(tmp_path, name, quick):
    frames = [Image.fromarray(noise(seed)) for seed in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert refused(tmp_path / name, quick=quick) == ["image-animated"]


@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 10_000), (8_001, 8_000)])
def test_bomb_is_refused_before_it_is_decoded(tmp_path, size, monkeypatch, recwarn):
    bomb(tmp_path / "a.png", *size)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert refused(tmp_path / "a.png") == ["image-too-large"]
    assert not recwarn.list


def test_largest_picture_is_not_a_bomb(tmp_path):
    bomb(tmp_path / "a.png", 8_000, 8_000)
    kind, _ = read_picture(tmp_path / "a.png", quick=True)
    assert (kind.width, kind.height) == (8_000, 8_000)


def test_file_of_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGEST_BYTES", 100)
    Image.fromarray(noise(1)).save(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == ["image-too-large"]


@pytest.mark.parametrize("shape", [(15, 200), (200, 15), (1, 1)])
def test_too_small(tmp_path, shape):
    Image.fromarray(noise(1, shape)).save(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == ["image-too-small"]


def test_messages_do_not_name_the_file(tmp_path):
    for content in (b"", b"zebra", b"\x89PNG\r\n\x1a\nzebra"):
        path = tmp_path / "zebrafile.png"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_picture(path)
        assert "zebra" not in str(caught.value) + str(caught.value.problems)


# --- decoded ---


def test_grey_and_rgb_keep_their_values(tmp_path):
    for number, shape in enumerate([(24, 24), (24, 24, 3)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(noise(1, shape)).save(path)
        mode, values = pixels_of(path)
        assert mode == ("L" if len(shape) == 2 else "RGB")
        np.testing.assert_array_equal(values, noise(1, shape))


def test_16_bit_png_is_stretched_not_cut(tmp_path):
    """12-bit values 100..4095 in 16 bit: the high byte alone would be nearly black."""
    deep = np.linspace(100, 4095, 24 * 24).round().astype(np.uint16).reshape(24, 24)
    Image.fromarray(deep).save(tmp_path / "a.png")
    mode, values = pixels_of(tmp_path / "a.png")
    assert mode == "L"
    expected = np.rint((deep - 100.0) / 3995 * 255)
    np.testing.assert_array_equal(values, expected)
    assert (values.min(), values.max()) == (0, 255)


def test_16_and_32_bit_tiff_is_stretched(tmp_path):
    for name, kind in (("a.tif", np.uint16), ("b.tif", np.int32), ("c.tif", np.float32)):
        deep = (np.arange(24 * 24).reshape(24, 24) * 3 + 1000).astype(kind)
        Image.fromarray(deep).save(tmp_path / name)
        _, values = pixels_of(tmp_path / name)
        np.testing.assert_array_equal(values, np.rint((deep - 1000.0) / (575 * 3) * 255))


def test_values_that_are_not_finite_are_refused(tmp_path):
    deep = np.ones((24, 24), np.float32)
    deep[0, 0] = np.nan
    Image.fromarray(deep).save(tmp_path / "a.tif")
    assert refused(tmp_path / "a.tif") == ["image-unreadable"]


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    plain = Image.new("RGB", (24, 24), (200, 40, 90))
    plain.convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    kind, image = read_picture(tmp_path / "a.jpg")
    assert (kind.mode, image.mode) == ("CMYK", "RGB")
    np.testing.assert_allclose(np.asarray(image)[12, 12], (200, 40, 90), atol=4)


def test_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (24, 24), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png")
    mode, values = pixels_of(tmp_path / "a.png")
    assert mode == "RGB"
    assert (values == (10, 200, 30)).all()


def test_transparency_is_put_on_black(tmp_path):
    Image.new("RGBA", (24, 24), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (24, 24), (200, 255)).save(tmp_path / "grey.png")
    Image.new("L", (24, 24), 77).save(tmp_path / "key.png", transparency=77)
    assert pixels_of(tmp_path / "clear.png")[1].max() == 0
    mode, values = pixels_of(tmp_path / "grey.png")
    assert (mode, values.min(), values.max()) == ("L", 200, 200)
    mode, values = pixels_of(tmp_path / "key.png")
    assert (mode, values.max()) == ("L", 0)


def test_bits_become_black_and_white(tmp_path):
    Image.fromarray(noise(1) > 127).save(tmp_path / "a.png")
    mode, values = pixels_of(tmp_path / "a.png")
    assert mode == "L"
    assert set(np.unique(values)) == {0, 255}


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(noise(1, (20, 40)))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    image.save(tmp_path / "a.png", exif=exif)
    _, values = pixels_of(tmp_path / "a.png")
    np.testing.assert_array_equal(values, np.rot90(noise(1, (20, 40)), -1))


def test_the_content_decides_not_the_ending(tmp_path):
    Image.fromarray(noise(1)).save(tmp_path / "a.jpg", format="PNG")
    assert read_picture(tmp_path / "a.jpg")[0].format == "PNG"


def test_window_by_hand():
    """Center 50, width 101: grey levels 0 to 100 (PS3.3 C.11.2.1.2)."""
    values = np.array([-5, 0, 50, 100, 200])
    np.testing.assert_array_equal(windowed(values, 50.5, 101), [0, 0, 128, 255, 255])
    exact = windowed(values, 50, 100, "LINEAR_EXACT")
    np.testing.assert_array_equal(exact, [0, 0, 128, 255, 255])
    np.testing.assert_array_equal(windowed(values, 50, 1), [0, 0, 255, 255, 255])
    np.testing.assert_array_equal(windowed(np.array([50]), 50, 10, "SIGMOID"), [128])


def test_scaling_by_hand():
    np.testing.assert_array_equal(scaled(np.array([0, 5, 10, 20]), 0, 10), [0, 128, 255, 255])
    np.testing.assert_array_equal(stretched(np.array([7, 7])), [0, 0])
    inside = np.array([False, True, True])
    np.testing.assert_array_equal(stretched(np.array([-2000, 0, 10]), inside), [0, 0, 255])


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.uint8])
def test_large_pictures_are_scaled_like_small_ones(kind):
    """The lookup of large pictures gives what the formula gives, value by value."""
    limits = np.iinfo(kind)
    values = np.random.default_rng(0).integers(limits.min, limits.max, (300, 300), dtype=kind)
    small = [scaled(part, -300.5, 900.25) for part in np.array_split(values, 10)]
    np.testing.assert_array_equal(scaled(values, -300.5, 900.25), np.concatenate(small))
