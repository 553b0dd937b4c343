"""The packaged base: loads with stock classes, is the pinned one, and knows the public findings."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from shared.errors import BaseModelError
from shared.model import tiny
from simulations.phantoms.corpus import public_corpus
from simulations.phantoms.grammar import prompts
from simulations.phantoms.retrieval import auroc, recall
from simulations.phantoms.studies import FINDINGS, PUBLIC_FINDINGS
from simulations.phantoms.tiny_model import pixel_values

LEAST_AUROC = 0.90
LEAST_RECALL_AT_5 = 0.70  # of about 140 distinct texts; chance is 0.04


@pytest.fixture(scope="module")
def base():
    folder = str(tiny.tiny_path())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            CLIPModel.from_pretrained(folder).eval(),
            AutoTokenizer.from_pretrained(folder),
            CLIPImageProcessorPil.from_pretrained(folder),
        )


@torch.no_grad()
def embed_texts(base, texts):
    model, tokenizer, _ = base
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return model.get_text_features(**encoded).pooler_output


@torch.no_grad()
def embed_pictures(base, pictures):
    model, _, processor = base
    images = [Image.fromarray(picture) for picture in pictures]
    return model.get_image_features(**processor(images, return_tensors="pt")).pooler_output


def test_the_weights_are_the_pinned_ones():
    weights = (tiny.TINY_FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == tiny.TINY_SHA256
    assert len(weights) < 2.5e6


def test_other_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "TINY_FOLDER", tmp_path)
    with pytest.raises(BaseModelError, match="missing"):
        tiny.tiny_path()
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BaseModelError, match="sha256"):
        tiny.tiny_path()


def test_the_tokenizer_is_the_one_that_the_model_was_trained_with(base):
    model, tokenizer, _ = base
    encoded = tokenizer(["No Pleural Effusion", "no"], padding=True)
    assert encoded["input_ids"][0] == tokenizer("no pleural effusion")["input_ids"]
    assert (encoded["input_ids"][0][0], encoded["input_ids"][0][-1]) == (2, 3)
    assert encoded["input_ids"][1][-1] == tokenizer.pad_token_id == 0
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id == 3
    assert tokenizer.model_max_length == model.config.text_config.max_position_embeddings == 64
    assert len(tokenizer("nodule " * 200, truncation=True)["input_ids"]) == 64


def test_the_stock_processor_gives_the_pixels_of_training(base):
    picture = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    pixels = base[2](Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    torch.testing.assert_close(pixels, pixel_values(picture[None]).expand(-1, 3, -1, -1))


def test_the_base_is_a_small_float32_clip(base):
    model = base[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 1.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6


def test_the_base_knows_the_public_findings_zero_shot(base):
    corpus = public_corpus(200, 4711, styles=["std"])
    images = torch.nn.functional.normalize(embed_pictures(base, corpus.pictures), dim=-1)
    values = []
    for name, sides in prompts("std").items():
        if name in PUBLIC_FINDINGS:
            positive, negative = (
                torch.nn.functional.normalize(embed_texts(base, sides[side]), dim=-1).mean(0)
                for side in ("positive", "negative")
            )
            labels = corpus.labels[:, FINDINGS.index(name)]
            values.append(auroc((images @ (positive - negative)).numpy(), labels))
    assert np.mean(values) >= LEAST_AUROC
    texts = embed_texts(base, sorted(set(corpus.texts)))
    similarity = images @ torch.nn.functional.normalize(texts, dim=-1).T
    assert recall(similarity.numpy(), corpus.texts)["recall@5"] >= LEAST_RECALL_AT_5
