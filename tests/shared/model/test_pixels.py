"""Resizing by Pillow alone is the checkpoint's own processor, bit for bit, or is not used."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model.pixels import PixelPipeline

SIZE = (16, 16)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pipeline(request, clip_folder: Path, siglip_folder: Path) -> PixelPipeline:
    return PixelPipeline(clip_folder if request.param == "clip" else siglip_folder, SIZE)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["L", "RGB"]),
    seed=st.integers(0, 2**31),
)
def test_direct_equals_the_processor(pipeline, width, height, mode, seed) -> None:
    assert pipeline._direct
    rng = np.random.default_rng(seed)
    shape = (height, width) if mode == "L" else (height, width, 3)
    image = PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    found = pipeline.to_pixels(image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pipeline._processed(image))


def changed(folder: Path, target: Path, **values: object) -> PixelPipeline:
    shutil.copytree(folder, target)
    path = target / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return PixelPipeline(target, SIZE)


def test_a_processor_that_does_more_is_used_itself(clip_folder, tmp_path) -> None:
    """One that pads pictures, which Pillow's way does not know."""
    whole = {"longest_edge": 16, "shortest_edge": 16}
    pipeline = changed(clip_folder, tmp_path / "base", size=whole)
    assert not pipeline._direct
    image = PIL.Image.new("L", (30, 20), 7)
    assert np.array_equal(pipeline.to_pixels(image), pipeline._processed(image))


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_the_processors_own_filter_is_taken(clip_folder, tmp_path, resample) -> None:
    pipeline = changed(clip_folder, tmp_path / "base", resample=resample)
    noise = np.random.default_rng(3).integers(0, 256, (50, 41), dtype=np.uint8)
    image = PIL.Image.fromarray(noise)
    assert pipeline._direct
    assert np.array_equal(pipeline.to_pixels(image), pipeline._processed(image))


def test_the_digest_follows_what_pictures_depend_on(clip_folder, tmp_path) -> None:
    first = PixelPipeline(clip_folder, SIZE)
    again = changed(clip_folder, tmp_path / "same")
    other = changed(clip_folder, tmp_path / "other", resample=0)
    assert first.sha256 == again.sha256 != other.sha256
