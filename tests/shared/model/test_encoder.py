"""The dual encoder against stock transformers, its views, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.adapter import SharedAdapter, factor_name
from shared.config import LoraConfig, ModelConfig
from shared.errors import AdapterMismatchError, BaseModelError
from shared.model import base
from shared.model.base import base_digest
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

LORA = LoraConfig(rank=4, alpha=8)
TEXTS = ["no finding", "there is a small dark square seen upper left and the chest is clear"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, clip_folder: Path, siglip_folder: Path) -> Path:
    return clip_folder if request.param == "clip" else siglip_folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> DualEncoder:
    return DualEncoder.load(ModelConfig(base=str(folder), precision="float32"), LORA)


def random_adapter(
    encoder: DualEncoder, seed: int, rank: int | None = None
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    width = rank or encoder.layout.rank
    result = {}
    for layer in encoder.layout.layers:
        shapes = {"A": (width, layer.inputs), "B": (layer.outputs, width)}
        for factor, shape in shapes.items():
            name = factor_name(layer.module, factor)
            result[name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    return result


def features(encoder: DualEncoder, view: AdapterView) -> np.ndarray:
    encoder.use(view)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 16, 16, 1)).astype(np.uint8))
    with torch.inference_mode():
        images = encoder.encode_images(pixels)
        texts = encoder.encode_texts(encoder.tokenize(TEXTS))
    return torch.cat([images, texts]).numpy()


@pytest.mark.parametrize("size", [(41, 30), (16, 16), (9, 25)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_equal_the_stock_processor(encoder, folder, size, mode) -> None:
    from transformers import AutoImageProcessor

    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(array).convert(mode)
    pixels = encoder.to_pixels(image)
    assert pixels.shape == ((16, 16) if mode == "L" else (16, 16, 3))
    stock = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = stock([image.convert("RGB")], return_tensors="pt")["pixel_values"]
    batch = torch.from_numpy(pixels.reshape(1, 16, 16, -1))
    # One grey level is 1/255; after normalisation about 0.015.
    assert (encoder._pixels.to_values(batch) - expected).abs().max() < 1e-5


def test_features_equal_the_stock_model(encoder, folder) -> None:
    from transformers import AutoModel, AutoTokenizer

    stock = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    fixed = stock.config.model_type == "siglip"
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS,
        padding="max_length" if fixed else True,
        max_length=16,
        truncation=True,
        return_tensors="pt",
    )
    if fixed:
        tokens.pop("attention_mask")
    tokens.pop("token_type_ids", None)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 16, 16, 1)).astype(np.uint8))
    with torch.no_grad():
        text = stock.get_text_features(**tokens).pooler_output
        image = stock.get_image_features(pixel_values=encoder._pixels.to_values(pixels))
    both = torch.cat([image.pooler_output, text])
    expected = torch.nn.functional.normalize(both, dim=-1).numpy()
    np.testing.assert_allclose(features(encoder, AdapterView()), expected, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(np.exp(2.3), rel=1e-5)
    assert encoder.logit_bias == pytest.approx(-3.0 if fixed else 0.0)


def test_a_text_means_the_same_alone_and_beside_a_longer_one(encoder) -> None:
    encoder.use(AdapterView())
    with torch.inference_mode():
        alone = encoder.encode_texts(encoder.tokenize(TEXTS[:1]))
        beside = encoder.encode_texts(encoder.tokenize(TEXTS))
    torch.testing.assert_close(alone[0], beside[0], atol=1e-6, rtol=0)


def test_long_texts_are_cut_to_what_the_base_takes(encoder) -> None:
    tokens = encoder.tokenize(["clear " * 100])
    assert tokens.ids.shape == (1, 16)
    assert tokens.ids[0, -1] == 3  # the end token stays


def test_fresh_adapters_are_the_base(encoder) -> None:
    zero = {n: (a if ".lora_A" in n else 0 * a) for n, a in random_adapter(encoder, 1).items()}
    assert np.array_equal(
        features(encoder, AdapterView(SharedAdapter(zero))), features(encoder, AdapterView())
    )


def test_alpha_zero_is_exactly_the_shared_model(encoder) -> None:
    shared = SharedAdapter(random_adapter(encoder, 1))
    personal = random_adapter(encoder, 2, rank=3)
    plain = features(encoder, AdapterView(shared))
    assert np.array_equal(features(encoder, AdapterView(shared, personal, {})), plain)
    only_text = features(encoder, AdapterView(shared, personal, {"image": 0.0, "text": 1.0}))
    assert np.array_equal(only_text[:3], plain[:3])
    assert not np.allclose(only_text[3:], plain[3:])


def test_a_personal_adapter_of_one_tower_leaves_no_trace_of_the_one_before(encoder) -> None:
    shared = SharedAdapter(random_adapter(encoder, 1))
    both = {"image": 1.0, "text": 1.0}
    features(encoder, AdapterView(shared, random_adapter(encoder, 2, rank=3), both))
    images = {n: a for n, a in random_adapter(encoder, 3, rank=3).items()
              if encoder.layout.tower_of(n) == "image"}  # fmt: skip
    found = features(encoder, AdapterView(shared, images, both))
    assert np.array_equal(found[3:], features(encoder, AdapterView(shared))[3:])


def test_the_weight_in_use_is_the_sum_of_all_products(encoder) -> None:
    first, second = random_adapter(encoder, 1), random_adapter(encoder, 2)
    personal = random_adapter(encoder, 3, rank=3)
    encoder.use(AdapterView())
    for layer in encoder.layout.layers:
        module = layer.module
        encoder.use(AdapterView())
        expected = encoder.merged_weight(module).detach().numpy().copy()
        for factors, scale in ((first, 2.0), (second, 2.0), (personal, 0.25 * 2.0)):
            a, b = (factors[factor_name(module, f)] for f in "AB")
            expected += scale * b @ a
        encoder.use(AdapterView(SharedAdapter(second, first, 1), personal, {layer.tower: 0.25}))
        found = encoder.merged_weight(module).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_adapters_the_frozen_weights_are_back_bit_for_bit(encoder) -> None:
    frozen = {n: p.detach().clone() for n, p in encoder.model.named_parameters()}
    encoder.use(AdapterView())
    modules = [layer.module for layer in encoder.layout.layers]
    before = {module: encoder.merged_weight(module).clone() for module in modules}
    both = SharedAdapter(random_adapter(encoder, 1), random_adapter(encoder, 2), 1)
    features(encoder, AdapterView(both, random_adapter(encoder, 3, rank=3), {"image": 1.0}))
    assert not torch.equal(encoder.merged_weight(modules[0]), before[modules[0]])
    encoder.use(AdapterView())
    for module in modules:
        assert torch.equal(encoder.merged_weight(module), before[module])
    for name, parameter in encoder.model.named_parameters():
        assert torch.equal(parameter, frozen[name]), name
        assert not parameter.requires_grad


def test_the_view_in_use_is_not_merged_again(encoder) -> None:
    shared = SharedAdapter(random_adapter(encoder, 1))
    module = encoder.layout.layers[0].module
    encoder.use(AdapterView(shared))
    merged = encoder.merged_weight(module)
    encoder.use(AdapterView(shared, random_adapter(encoder, 2), {"image": 0.0}))
    assert encoder.merged_weight(module) is merged
    encoder.use(AdapterView(SharedAdapter(shared.factors)))
    assert encoder.merged_weight(module) is not merged


def stacked(encoder: DualEncoder, adapters: list[dict[str, np.ndarray]], rank: int | None = None):
    stack = encoder.new_stack(len(adapters), rank)
    for row, adapter in enumerate(adapters):
        stack.put(row, adapter)
    return stack


PICTURES = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 1)).astype(np.uint8)
REPORTS = [*TEXTS, "large bright square", "clear chest", "no", "left spot is seen", "an image"]


def own_features(
    encoder: DualEncoder, pictures: np.ndarray, texts: list[str], counts=(None, None)
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        images = encoder.encode_images(torch.from_numpy(pictures), counts[0])
        return images, encoder.encode_texts(encoder.tokenize(texts), counts[1])


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        ((3, 3, 3), (2, 2, 2)),
        ((1, 6, 2), (3, 0, 4)),
        ((0, 5, 4), (1, 1, 5)),
        ((2, 4, 2), (2, 3, 2)),
    ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_every_adapter_of_a_stack_is_the_function_it_is_alone(
    encoder, images, texts, mixed
) -> None:
    """In one pass, whatever the counts; on a common part, and with own mixing weights."""
    common = SharedAdapter(random_adapter(encoder, 8), random_adapter(encoder, 9), 1)
    own = [random_adapter(encoder, seed, rank=3) for seed in range(3)]
    alphas = [{"image": 1.0, "text": 0.5}, {"image": 0.25}, {"image": 1.0, "text": 1.0}]
    if not mixed:
        alphas = [{"image": 1.0, "text": 1.0}] * 3
    stack = stacked(encoder, own, 3)
    encoder.use_stack(stack, AdapterView(common), alphas if mixed else None)
    pictures, reports = PICTURES[: sum(images)], REPORTS[: sum(texts)]
    found = own_features(encoder, pictures, reports, (images, texts))
    starts = np.cumsum([(0, 0), *zip(images, texts, strict=True)], axis=0)
    for row in range(3):
        encoder.use(AdapterView(common, own[row], alphas[row]))
        (i, t), (j, u) = starts[row], starts[row + 1]
        if j > i:
            alone = own_features(encoder, pictures[i:j], ["no"])[0]
            torch.testing.assert_close(found[0][i:j], alone, atol=2e-6, rtol=0)
        if u > t:
            alone = own_features(encoder, pictures[:1], reports[t:u])[1]
            torch.testing.assert_close(found[1][t:u], alone, atol=2e-6, rtol=0)


def test_a_stack_wants_a_count_per_adapter(encoder) -> None:
    encoder.use_stack(encoder.new_stack(2), AdapterView())
    for counts in (None, [9], [3, 3, 3]):
        with pytest.raises(ValueError, match="2 adapters"):
            encoder.encode_images(torch.from_numpy(PICTURES), counts)
    encoder.use(AdapterView())
    assert encoder.encode_images(torch.from_numpy(PICTURES)).shape[0] == 9


def test_training_a_stack_does_not_outlive_the_next_use(encoder) -> None:
    adapter = random_adapter(encoder, 4)
    given = {name: array.copy() for name, array in adapter.items()}
    view = AdapterView(SharedAdapter(adapter))
    before = features(encoder, view)
    stack = stacked(encoder, [adapter])
    encoder.use_stack(stack, AdapterView())
    with torch.no_grad():
        stack.values.add_(1.0)
    assert np.array_equal(features(encoder, view), before)
    assert all(np.array_equal(adapter[name], given[name]) for name in adapter)


def test_scoring_in_inference_mode_does_not_spoil_training(folder) -> None:
    fresh = DualEncoder.load(ModelConfig(base=str(folder), precision="float32"), LORA)
    features(fresh, AdapterView())  # what is worked out here must serve training, too
    stack = stacked(fresh, [random_adapter(fresh, 1)])
    stack.train(("A", "B"))
    fresh.use_stack(stack, AdapterView())
    images = fresh.encode_images(torch.from_numpy(PICTURES), [9])
    texts = fresh.encode_texts(fresh.tokenize(TEXTS), [2])
    (images.sum() + texts.sum()).backward()
    for _, columns in stack.slices(("A", "B"), ("image", "text")):
        assert float(stack.gradients[0, columns].abs().sum()) > 0


def test_gauge_change_leaves_the_function(encoder) -> None:
    factors = random_adapter(encoder, 5)
    turned = {}
    for layer in encoder.layout.layers:
        a, b = (factor_name(layer.module, f) for f in "AB")
        q, r = np.linalg.qr(factors[a].astype(np.float64).T)
        turned[a] = q.T.astype(np.float32)
        turned[b] = (factors[b].astype(np.float64) @ r.T).astype(np.float32)
    np.testing.assert_allclose(
        features(encoder, AdapterView(SharedAdapter(turned))),
        features(encoder, AdapterView(SharedAdapter(factors))),
        atol=1e-5,
    )


def test_a_late_joiner_rebuilds_the_function_from_residual_and_factors(encoder, folder) -> None:
    first, second = random_adapter(encoder, 6), random_adapter(encoder, 7)
    folded = SharedAdapter(second, residual=first, folds=1)
    # One that was there from the start, and has seen other residuals in between ...
    features(encoder, AdapterView(SharedAdapter(first)))
    features(encoder, AdapterView(SharedAdapter(first, residual=second)))
    features(encoder, AdapterView(SharedAdapter(second)))
    stayed = features(encoder, AdapterView(folded))
    # ... and one that joins now, with its own copies of the arrays.
    exact = ModelConfig(base=str(folder), precision="float32")
    late = DualEncoder.load(exact, LORA)
    copied = SharedAdapter({n: a.copy() for n, a in second.items()},
                           {n: a.copy() for n, a in first.items()}, 1)  # fmt: skip
    assert np.array_equal(features(late, AdapterView(copied)), stayed)
    # The sum of the products is what both compute.
    stacked = {
        name: np.concatenate([first[name], second[name]], axis=0 if ".lora_A" in name else 1)
        for name in first
    }
    wide = DualEncoder.load(exact, LoraConfig(rank=8, alpha=16))
    np.testing.assert_allclose(
        features(wide, AdapterView(SharedAdapter(stacked))), stayed, atol=1e-5
    )
    # Without residual the frozen weights are back, bit for bit.
    module = encoder.layout.layers[0].module
    encoder.use(AdapterView())
    late.use(AdapterView())
    assert torch.equal(encoder.merged_weight(module), late.merged_weight(module))


def test_refuses_an_adapter_that_does_not_fit(encoder) -> None:
    factors = random_adapter(encoder, 1)
    name = next(iter(factors))
    with pytest.raises(AdapterMismatchError, match="expected shape"):
        encoder.use(AdapterView(SharedAdapter({**factors, name: factors[name][:, :-1]})))
    wrong = {n.replace("q_proj", "qq_proj"): a for n, a in factors.items()}
    with pytest.raises(AdapterMismatchError, match="qq_proj: an adapter does not fit the base"):
        encoder.use(AdapterView(SharedAdapter(factors, residual=wrong)))


def test_refuses_another_base_and_names_both_digests(clip_folder) -> None:
    found = base_digest(clip_folder)
    with pytest.raises(BaseModelError, match=f"{found}.*{'0' * 64}"):
        DualEncoder.load(ModelConfig(base=str(clip_folder), sha256="0" * 64), LORA)
    assert DualEncoder.load(ModelConfig(base=str(clip_folder), sha256=found), LORA).layout


def test_the_digest_depends_on_content_not_on_place(clip_folder, tmp_path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(clip_folder, copy)
    assert base_digest(copy) == base_digest(clip_folder)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert base_digest(copy) != base_digest(clip_folder)


def test_large_weights_are_hashed_once(clip_folder, monkeypatch) -> None:
    base._file_sha256.cache_clear()
    opened = []
    digest = base.hashlib.file_digest
    monkeypatch.setattr(
        base.hashlib, "file_digest", lambda file, kind: opened.append(file) or digest(file, kind)
    )
    assert base_digest(clip_folder) == base_digest(clip_folder)
    assert len(opened) == 2  # config.json and model.safetensors


def broken(source: Path, target: Path, damage: str) -> Path:
    shutil.copytree(source, target)
    config = target / "config.json"
    if damage == "bin":
        (target / "model.safetensors").rename(target / "pytorch_model.bin")
    elif damage == "family":
        config.write_text(json.dumps({"model_type": "bert"}))
    elif damage == "missing":
        from safetensors.torch import load_file, save_file

        tensors = load_file(target / "model.safetensors")
        del tensors["text_projection.weight"]
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    elif damage == "truncated":
        weights = target / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (target / damage).unlink()
    return target


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("bin", "pickled Python, which is never loaded: convert"),
        ("family", "'bert' is not one of"),
        ("missing", "1 weights are missing.*text_projection.weight"),
        ("truncated", "weights cannot be loaded"),
        ("config.json", "no config.json"),
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("tokenizer.json", "tokenizer cannot be loaded"),
    ],
)
def test_says_what_is_wrong_with_a_base(clip_folder, tmp_path, damage, message) -> None:
    folder = broken(clip_folder, tmp_path / "base", damage)
    with pytest.raises(BaseModelError, match=message):
        DualEncoder.load(ModelConfig(base=str(folder)), LORA)


def test_refuses_a_folder_that_is_not_there() -> None:
    with pytest.raises(BaseModelError, match="no such folder"):
        DualEncoder.load(ModelConfig(base="/nowhere/at/all"), LORA)


def test_refuses_texts_longer_than_the_base_takes(clip_folder) -> None:
    with pytest.raises(BaseModelError, match="up to 16 tokens"):
        DualEncoder.load(ModelConfig(base=str(clip_folder), max_tokens=64), LORA)


def test_refuses_pictures_of_another_size(clip_folder, tmp_path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(clip_folder, folder)
    path = folder / "preprocessor_config.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "do_center_crop": False}))
    with pytest.raises(BaseModelError, match="expects 16 x 16"):
        DualEncoder.load(ModelConfig(base=str(folder)), LORA)
