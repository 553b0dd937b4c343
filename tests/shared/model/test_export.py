"""Exports open in stock PEFT and transformers, and compute the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from shared.adapter import Adapter, LayerShape, SharedAdapter, factor_name
from shared.config import LoraConfig, ModelConfig
from shared.model.encoder import DualEncoder
from shared.model.export import _decompose, save_merged, save_peft
from shared.model.view import AdapterView

TEXTS = ["no finding", "upper bright square and lower dark square"]


def exact(folder: Path) -> ModelConfig:
    return ModelConfig(base=str(folder), precision="float32")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, clip_folder: Path, siglip_folder: Path) -> Path:
    return clip_folder if request.param == "clip" else siglip_folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> DualEncoder:
    return DualEncoder.load(
        ModelConfig(base=str(folder), precision="float32"), LoraConfig(rank=3, alpha=6)
    )


def random_adapter(encoder: DualEncoder, seed: int, rank: int) -> Adapter:
    rng = np.random.default_rng(seed)
    return {
        factor_name(layer.module, factor): (0.2 * rng.standard_normal(shape)).astype(np.float32)
        for layer in encoder.layout.layers
        for factor, shape in (("A", (rank, layer.inputs)), ("B", (layer.outputs, rank)))
    }


@pytest.fixture(scope="module")
def view(encoder: DualEncoder) -> AdapterView:
    shared = SharedAdapter(random_adapter(encoder, 1, 3), random_adapter(encoder, 2, 6), folds=2)
    return AdapterView(shared, random_adapter(encoder, 3, 2), {"image": 1.0, "text": 0.5})


def stock_features(model: nn.Module, encoder: DualEncoder) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 16, 16, 1)).astype(np.uint8))
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=encoder._pixels.to_values(pixels))
        text = model.get_text_features(input_ids=tokens.ids)
    both = torch.cat([image.pooler_output, text.pooler_output])
    return torch.nn.functional.normalize(both, dim=-1).numpy()


def own_features(encoder: DualEncoder, view: AdapterView) -> np.ndarray:
    encoder.use(view)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 16, 16, 1)).astype(np.uint8))
    with torch.inference_mode():
        image = encoder.encode_images(pixels)
        text = encoder.encode_texts(encoder.tokenize(TEXTS))
    return torch.cat([image, text]).numpy()


def test_exact_export_opens_in_peft_and_computes_the_same(encoder, folder, view, tmp_path) -> None:
    report = save_peft(tmp_path / "adapter", encoder, view, energy=None)
    assert report.rank == 3 + 6 + 2
    assert report.relative_error < 1e-12
    base = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    plain = stock_features(base, encoder)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    found = stock_features(model, encoder)
    np.testing.assert_allclose(found, own_features(encoder, view), atol=1e-5)
    assert np.abs(found - plain).max() > 0.05  # the adapter does something
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 11
    assert config["fan_in_fan_out"] is False


def test_truncation_keeps_the_energy_and_reports_what_it_lost(encoder, tmp_path) -> None:
    # One strong direction and two weak ones in every layer: 1 + 2 * 0.005**2, 99.995 % in one.
    shapes = {layer.module: (layer.outputs, layer.inputs) for layer in encoder.layout.layers}
    factors = {}
    for module, (m, n) in shapes.items():
        b = np.linalg.qr(np.random.default_rng(1).standard_normal((m, 3)))[0]
        a = np.linalg.qr(np.random.default_rng(2).standard_normal((n, 3)))[0].T
        factors[factor_name(module, "A")] = a.astype(np.float32)
        factors[factor_name(module, "B")] = (b * [1.0, 0.005, 0.005]).astype(np.float32)
    view = AdapterView(SharedAdapter(factors))
    report = save_peft(tmp_path / "adapter", encoder, view, energy=0.9999)
    assert report.rank == 1
    assert report.energy == pytest.approx(1 - 2 * 0.005**2, abs=1e-6)
    assert report.relative_error == pytest.approx(0.005 * np.sqrt(2), rel=1e-3)
    written = json.loads((tmp_path / "adapter" / "consilia.json").read_text())
    assert written["base_sha256"] == encoder.base_sha256
    assert written["relative_error"] == report.relative_error


def test_an_export_is_the_same_bytes_twice(encoder, view, tmp_path) -> None:
    for name in ("one", "two"):
        save_peft(tmp_path / name, encoder, view)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_merged_folder_is_a_complete_checkpoint(encoder, view, tmp_path) -> None:
    save_merged(tmp_path / "merged", encoder, view)
    model = AutoModel.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    np.testing.assert_allclose(
        stock_features(model, encoder), own_features(encoder, view), atol=1e-5
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(TEXTS[0])["input_ids"][0] == 2
    # It can be the base of the next federation.
    again = DualEncoder.load(
        ModelConfig(base=str(tmp_path / "merged"), precision="float32"), LoraConfig(rank=2)
    )
    np.testing.assert_allclose(
        own_features(again, AdapterView()), own_features(encoder, view), atol=1e-5
    )


def test_the_base_export_adds_nothing(encoder, tmp_path) -> None:
    report = save_peft(tmp_path / "adapter", encoder, AdapterView())
    assert (report.rank, report.energy, report.relative_error) == (1, 1.0, 0.0)


def test_factors_are_right_for_a_transposed_conv1d_too() -> None:
    # GPT-2's Conv1D keeps its weight as (inputs, outputs); PEFT transposes B A for it.
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("c_attn", Conv1D(5, 3))  # 3 inputs, 5 outputs
    weight = model.c_attn.weight.detach().clone()
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((5, 2)), rng.standard_normal((2, 3))
    layer = LayerShape("c_attn", "text", outputs=5, inputs=3)
    factors = _decompose(b, a).factors(layer, rank=2)
    peft = get_peft_model(
        model, PeftConfig(r=2, lora_alpha=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    with torch.no_grad():
        for factor in "AB":
            name = factor_name("c_attn", factor).replace(".weight", ".default.weight")
            peft.get_parameter(name).copy_(torch.from_numpy(factors[factor_name("c_attn", factor)]))
        x = torch.randn(4, 3)
        expected = x @ (weight + torch.from_numpy(b @ a).float().T) + model.c_attn.bias
        torch.testing.assert_close(peft(x), expected)
