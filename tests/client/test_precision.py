"""Gradients of training in bfloat16 against those in float32."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from client.batches import Batch, prepare
from client.data.records import SiteData
from client.encoding import Part, encode
from client.losses import LossContext, batch_losses
from client.training import fresh_adapter, train_local
from shared.adapter import Adapter
from shared.config import JobConfig, ModelConfig
from shared.model import clip_forward
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

PAIRS = 16


@pytest.fixture(scope="session")
def wide_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of width 128: 32x32 pixels, patch 8, 3 layers."""

    folder = tmp_path_factory.mktemp("wide")
    tower = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    tower |= {"num_hidden_layers": 3}
    own = AutoConfig.from_pretrained(clip_folder)
    marks = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": own.text_config.vocab_size, "max_position_embeddings": 16}
    torch.manual_seed(1)
    CLIPModel(
        CLIPConfig(
            text_config={**tower, **marks, **text},
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            projection_dim=96,
            logit_scale_init_value=2.3,
        )
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(clip_folder).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["clip", "wide"])
def encoders(request, small_job: JobConfig, clip_folder, wide_folder) -> list[DualEncoder]:
    """One base of width 32 or 128, in float32 and in bfloat16."""
    folder = str(clip_folder if request.param == "clip" else wide_folder)
    return [
        DualEncoder.load(ModelConfig(base=folder, precision=precision), small_job.lora)
        for precision in ("float32", "bfloat16")
    ]


def enlarged(data: SiteData, size: int) -> SiteData:
    splits = {}
    for name, split in data.splits.items():
        times = size // split.pixels.shape[1]
        pixels = np.ascontiguousarray(split.pixels.repeat(times, 1).repeat(times, 2))
        splits[name] = dataclasses.replace(split, pixels=pixels)
    return dataclasses.replace(data, splits=splits)


@pytest.fixture
def sites(encoders, site_of) -> list[SiteData]:
    size = encoders[0].picture_size[0]
    return [enlarged(site_of(counts=(PAIRS, 4, 4), seed=seed), size) for seed in range(4)]


def gradients_of(encoder: DualEncoder, sites: list[SiteData], starts: list[Adapter]):
    """The gradient of every site's row in one cohort of pairs."""
    stack = encoder.new_stack(len(sites))
    for row, start in enumerate(starts):
        stack.put(row, start)
    stack.train(("A", "B"))
    encoder.use_stack(stack, AdapterView())
    none = np.arange(0)
    parts = [
        Part(prepare(encoder, data, "train"), Batch(np.arange(PAIRS), none, none), row)
        for row, data in enumerate(sites)
    ]
    context = LossContext(None, None, encoder.logit_scale)
    losses = batch_losses(encode(encoder, parts, len(parts)), parts, [context] * len(parts))
    losses.sum().backward()
    encoder.use(AdapterView())
    return stack.gradients


def test_within_2_percent_of_float32_where_training_begins(encoders, sites) -> None:
    starts = [fresh_adapter(encoders[0].layout, seed).factors for seed in range(4)]
    exact, rough = (gradients_of(encoder, sites, starts) for encoder in encoders)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert float((rough - exact).norm() / exact.norm()) < 0.02
    assert float(((rough - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 0.025
    assert (torch.nn.functional.cosine_similarity(rough, exact, dim=1) > 0.999).all()


def test_as_near_as_transformers_own_bfloat16_further_on(
    encoders, sites, small_job, monkeypatch
) -> None:
    """What is left is bfloat16's own rounding: no more of it than in transformers' forward."""
    full, half = encoders
    steps = small_job.train.model_copy(update={"steps": 8})
    job = small_job.model_copy(update={"train": steps})
    starts = [found.factors for found in train_local(full, [(s, 1) for s in sites], job)]
    exact = gradients_of(full, sites, starts)
    ours = gradients_of(half, sites, starts)
    monkeypatch.setattr(clip_forward, "applies_to", lambda model: False)
    config = ModelConfig(base=str(half.folder), precision="bfloat16")
    theirs = gradients_of(DualEncoder.load(config, small_job.lora), sites, starts)
    error, usual = (
        float(((found - exact).norm(dim=1) / exact.norm(dim=1)).mean()) for found in (ours, theirs)
    )
    assert error < 2 * usual
    assert (torch.nn.functional.cosine_similarity(ours, exact, dim=1) > 0.98).all()
