"""Layout and adapters come back from their files; anything else is named as what it is."""

import numpy as np
import pytest
import safetensors.numpy

from shared.adapter import AdapterLayout, LayerShape, SharedAdapter, factor_name
from shared.errors import RunDirectoryError
from shared.layout_file import adapter_bytes, layout_bytes, load_adapter, load_layout

LAYOUT = AdapterLayout((LayerShape("v.q", "image", 4, 3), LayerShape("t", "text", 2, 5)), 2, 0.5)
SHA = "5" * 64


def test_a_layout_comes_back_with_its_base(tmp_path):
    path = tmp_path / "layout.json"
    path.write_bytes(layout_bytes(LAYOUT, SHA))
    assert load_layout(path) == (LAYOUT, SHA)


@pytest.mark.parametrize(
    "change",
    [
        (b'"format": 1', b'"format": 2'),
        (b'"image"', b'"sound"'),
        (b'"rank": 2', b'"rank": 0'),
        (b'"rank"', b'"extra": 1, "rank"'),
        (b"{", b"["),
    ],
)
def test_another_layout_file_is_refused_in_one_line(tmp_path, change):
    path = tmp_path / "layout.json"
    path.write_bytes(layout_bytes(LAYOUT, SHA).replace(*change))
    with pytest.raises(RunDirectoryError, match=r"layout\.json: ") as caught:
        load_layout(path)
    assert "\n" not in str(caught.value)


def test_a_missing_layout_is_an_error(tmp_path):
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        load_layout(tmp_path / "layout.json")


def test_a_shared_adapter_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    factors = {n: rng.normal(size=LAYOUT.shape_of(n)).astype(np.float32) for n in LAYOUT.names()}
    residual = {factor_name("t", "B"): np.ones((2, 7), np.float32)}
    shared = SharedAdapter(factors, residual, folds=3)
    path = tmp_path / "local.safetensors"
    path.write_bytes(adapter_bytes(shared))
    loaded = load_adapter(path)
    assert loaded.sha256() == shared.sha256()
    assert loaded.folds == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", safetensors.numpy.save({"weight": np.ones(2, np.float32)})],
)
def test_what_is_no_adapter_is_refused(tmp_path, content):
    path = tmp_path / "local.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="not a shared adapter"):
        load_adapter(path)
    with pytest.raises(RunDirectoryError, match="no such adapter file"):
        load_adapter(tmp_path / "missing.safetensors")
