"""The shape of consilia-tiny, its tokenizer, and the folder that it is shipped as."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from simulations.phantoms.texture import SIZE, Array

PATCH = 12
WIDTH = 128
MAX_LENGTH = 64
VOCABULARY = 768
PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
}
PIXEL_MEAN, PIXEL_STD = 0.45, 0.25


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE on lower-cased texts; every text is wrapped in start and end tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


def tiny_config(vocabulary: int, channels: int) -> CLIPConfig:
    """A CLIP of 1.1 million parameters; 12-pixel patches still see nodules of 2 to 4 pixels."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }
    text = {
        "vocab_size": vocabulary,
        "num_hidden_layers": 3,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    vision = {
        "num_hidden_layers": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_channels": channels,
    }
    return CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, **vision},
        projection_dim=WIDTH,
        logit_scale_init_value=math.log(10),
    )


def pixel_values(pictures: Array) -> torch.Tensor:
    """Grey pictures (n, 96, 96) uint8 as normalised floats (n, 1, 96, 96)."""
    grey = torch.from_numpy(pictures).float()[:, None] / 255
    return (grey - PIXEL_MEAN) / PIXEL_STD


def export(model: CLIPModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that stock CLIP classes of transformers load.

    The patch kernel is tiled over three channels and divided by three, which is exact for a grey
    picture converted to RGB. Weights are stored as float16; the configuration says float32, and
    that is what they are loaded as.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kernel = "vision_model.embeddings.patch_embedding.weight"
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    weights[kernel] = weights[kernel].repeat(1, 3, 1, 1) / 3
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in weights.items()
        if not name.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = tiny_config(tokenizer.get_vocab_size(), channels=3).to_dict()
    config |= {"architectures": ["CLIPModel"], "dtype": "float32"}
    _write_json(folder / "config.json", config)
    _export_tokenizer(tokenizer, folder)
    _write_json(folder / "preprocessor_config.json", _image_processor())


def _export_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=copy, model_max_length=MAX_LENGTH, **SPECIAL_TOKENS
    )
    fast.save_pretrained(str(folder))
    _write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
