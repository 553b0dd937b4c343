"""The sizes of model that are measured, and random checkpoints of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

_SPECIAL: Final = ("<pad>", "<unk>", "<s>", "</s>")
_MOST_WORDS = 2000


@dataclass(frozen=True)
class Tower:
    """A transformer tower: width, layers and attention heads; its MLP is four times as wide."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Geometry:
    """A dual encoder of CLIP's architecture.

    Attributes:
        name: As on the command line.
        vision: The image tower.
        text: The text tower.
        picture: Height and width of a picture, in pixels.
        patch: Height and width of a patch, in pixels.
        vocabulary: Rows of the token table.
        max_tokens: Longest text that the tower takes.
        caption: Fewest and most tokens of a caption, start and end token included.
        projection: Width of the common space.
    """

    name: str
    vision: Tower
    text: Tower
    picture: int
    patch: int
    vocabulary: int
    max_tokens: int
    caption: tuple[int, int]
    projection: int

    @property
    def words(self) -> int:
        """How many words its captions are drawn from."""
        return min(_MOST_WORDS, self.vocabulary - len(_SPECIAL))


SMOKE = Geometry(
    name="smoke",
    vision=Tower(32, 2, 2),
    text=Tower(32, 2, 2),
    picture=16,
    patch=8,
    vocabulary=128,
    max_tokens=16,
    caption=(6, 16),
    projection=24,
)
SMALL = Geometry(
    name="small",
    vision=Tower(192, 6, 3),
    text=Tower(128, 4, 2),
    picture=64,
    patch=16,
    vocabulary=4096,
    max_tokens=32,
    caption=(8, 32),
    projection=128,
)
# The two below: Radford et al., 2021, https://arxiv.org/abs/2103.00020, tables 19 and 20.
VIT_B32 = Geometry(
    name="vit-b32",
    vision=Tower(768, 12, 12),
    text=Tower(512, 12, 8),
    picture=224,
    patch=32,
    vocabulary=49408,
    max_tokens=77,
    caption=(24, 24),
    projection=512,
)
VIT_L14 = Geometry(
    name="vit-l14",
    vision=Tower(1024, 24, 16),
    text=Tower(768, 12, 12),
    picture=224,
    patch=14,
    vocabulary=49408,
    max_tokens=77,
    caption=(24, 24),
    projection=768,
)
GEOMETRIES: Final = {g.name: g for g in (SMOKE, SMALL, VIT_B32, VIT_L14)}


@contextmanager
def temporary_base(geometry: Geometry) -> Iterator[Path]:
    """Yield a folder with a random checkpoint of a geometry; it is gone afterwards."""
    with TemporaryDirectory(prefix=f"consilia-{geometry.name}-") as folder:
        write_base(Path(folder), geometry)
        yield Path(folder)


def write_base(folder: Path, geometry: Geometry) -> None:
    """Write a randomly initialised CLIP with a tokenizer and an image processor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    _write_tokenizer(folder, geometry)
    config = CLIPConfig(
        text_config=_tower_config(geometry.text)
        | {
            "vocab_size": geometry.vocabulary,
            "max_position_embeddings": geometry.max_tokens,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config=_tower_config(geometry.vision)
        | {"image_size": geometry.picture, "patch_size": geometry.patch},
        projection_dim=geometry.projection,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    side = geometry.picture
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def _tower_config(tower: Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
    }


def _write_tokenizer(folder: Path, geometry: Geometry) -> None:
    """Every word is one token, so that a caption's length is what it was drawn to be."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    words = (f"w{number}" for number in range(geometry.words))
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), _SPECIAL, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=geometry.max_tokens, **names
    ).save_pretrained(folder)
