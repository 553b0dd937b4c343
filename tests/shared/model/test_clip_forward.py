"""CLIP's short forward against transformers' own, forward and backward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, CLIPModel, SiglipModel

from shared.adapter import factor_name
from shared.config import LoraConfig, ModelConfig
from shared.model import clip_forward
from shared.model.encoder import DualEncoder
from shared.model.stack import AdapterStack
from shared.model.view import AdapterView
from shared.objectives.infonce import infonce

LORA = LoraConfig(rank=4, alpha=8)
# 32 is the highest id, which checkpoints with end token 2 pool at; 3 is the end token.
IDS = torch.tensor([[2, 9, 32, 3, 0, 0], [2, 5, 6, 7, 32, 3], [2, 32, 3, 0, 0, 0]])


def model_of(folder: Path, end_token: int = 3) -> CLIPModel:
    config = AutoConfig.from_pretrained(folder)
    config.text_config.eos_token_id = end_token
    return CLIPModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()


@pytest.mark.parametrize("end_token", [2, 3])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_short_forward_of_clip_equals_the_long_one(clip_folder, end_token, depth) -> None:
    model = model_of(clip_folder, end_token)
    assert clip_forward.applies_to(model)
    values = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for short in (True, False):
        model.zero_grad()
        if short:
            prefix, end = clip_forward.text_prefix(model, IDS, depth)
            text = clip_forward.text_features(model, prefix, end, depth)
            prefix = clip_forward.image_prefix(model, values, depth)
            image = clip_forward.image_features(model, prefix, depth)
        else:
            text = model.get_text_features(input_ids=IDS).pooler_output
            image = model.get_image_features(pixel_values=values).pooler_output
        (text.square().sum() + image.square().sum()).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append(found | {"text": text.detach(), "image": image.detach()})
    ours, theirs = results
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-3)
    # Below ``depth`` nothing is trained; above, queries, keys and values are one product of
    # frozen weights, which adapters come beside.
    numbers = range(depth, 2)
    wanted = {
        name
        for name in theirs
        if any(f"layers.{number}." in name for number in numbers)
        and ("layers.1." in name or not any(f"{p}_proj" in name for p in "qkv"))
    }
    wanted |= {n for n in theirs if "projection" in n or "post_layernorm" in n or "final" in n}
    assert set(ours) == wanted | {"text", "image"}


def test_is_for_plain_clip_only(siglip_folder) -> None:
    assert not clip_forward.applies_to(SiglipModel.from_pretrained(siglip_folder))


def filled(encoder: DualEncoder, count: int) -> AdapterStack:
    rng = np.random.default_rng(0)
    stack = encoder.new_stack(count)
    for row in range(count):
        adapter = {}
        for layer in encoder.layout.layers:
            a = np.linalg.qr(rng.standard_normal((layer.inputs, encoder.layout.rank)))[0].T
            b = 0.02 * rng.standard_normal((layer.outputs, encoder.layout.rank))
            adapter[factor_name(layer.module, "A")] = a.astype(np.float32)
            adapter[factor_name(layer.module, "B")] = b.astype(np.float32)
        stack.put(row, adapter)
    return stack


TEXTS = [
    "there is upper bright square",
    "no finding",
    "lower dark square and upper bright square",
    "there is lower dark square seen clear",
    "small spot left",
    "large opacity upper right chest",
]


def gradients_of(encoder: DualEncoder, counts=(6, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and the stack's gradients of InfoNCE, per adapter on its own pairs."""
    stack = filled(encoder, len(counts))
    stack.train(("A", "B"))
    encoder.use_stack(stack, AdapterView())
    rng = np.random.default_rng(1)
    size = (sum(counts), *encoder.picture_size, 1)
    pixels = rng.integers(0, 256, size).astype(np.uint8)
    pixels[: len(pixels) // 2, :8] //= 3
    texts = [text for count in counts for text in TEXTS[:count]]
    images = encoder.encode_images(torch.from_numpy(pixels), counts)
    reports = encoder.encode_texts(encoder.tokenize(texts), counts)
    sides = zip(images.split(counts), reports.split(counts), strict=True)
    losses = [infonce(i, t, torch.eye(len(i)), encoder.logit_scale).mean() for i, t in sides]
    torch.stack(losses).sum().backward()
    gradients = stack.gradients.clone()
    encoder.use(AdapterView())
    return torch.cat([images, reports]).detach(), gradients


def test_adapters_get_the_gradient_that_transformers_forward_gives(
    clip_folder, monkeypatch
) -> None:
    encoder = DualEncoder.load(ModelConfig(base=str(clip_folder), precision="float32"), LORA)
    assert encoder.lean
    short = gradients_of(encoder)
    monkeypatch.setattr(encoder, "lean", False)
    long = gradients_of(encoder)
    torch.testing.assert_close(short[0], long[0], atol=1e-5, rtol=0)
    for one, other in zip(short[1], long[1], strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5
