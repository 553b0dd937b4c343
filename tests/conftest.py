"""Small random checkpoints, a small learnable site, and the command in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data.records import Prompts, SiteData, Split, SplitName
from shared.config import JobConfig
from shared.results import DatasetOrigin
from simulations.cli import main

pytest_plugins = ("tests.integration.postgres",)

WORDS = (
    *("no", "finding", "left", "right", "upper", "lower", "bright", "dark", "square", "spot"),
    *("small", "large", "seen", "clear", "chest", "image", "there", "is", "a", "an", "of"),
    *("the", "and", "normal", "study", "shows", "with", "without", "opacity"),
)
FINDINGS = ("bright", "dark")
PLACES = ("upper", "lower")
SIZE = 16
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


def _save_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)
    fast.save_pretrained(folder)
    return len(vocabulary)


def _text_config(vocabulary: int) -> dict[str, Any]:
    return {
        **TOWER,
        "vocab_size": vocabulary,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }


def _vision_config() -> dict[str, Any]:
    return {**TOWER, "num_hidden_layers": 2, "image_size": SIZE, "patch_size": 4}


def _save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    vocabulary = _save_tokenizer(folder)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=_text_config(vocabulary),
        vision_config=_vision_config(),
        projection_dim=24,
        logit_scale_init_value=2.3,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)
    return folder


def _save_siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    vocabulary = _save_tokenizer(folder)
    torch.manual_seed(0)
    text = {**_text_config(vocabulary), "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_vision_config()))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP checkpoint: 16x16 pixels, patch 4, width 32, 2 layers, 16 tokens."""
    return _save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP checkpoint of the same size."""
    return _save_siglip(tmp_path_factory.mktemp("siglip"))


def make_split(
    count: int,
    seed: int,
    *,
    images: Sequence[bool] | None = None,
    texts: Sequence[bool] | None = None,
) -> Split:
    """Pictures with a bright and / or dark square, upper or lower, and their reports."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 2)).astype(np.float32)
    place = rng.integers(0, 2, count)
    pixels = rng.integers(96, 160, (count, SIZE, SIZE, 1)).astype(np.uint8)
    reports = []
    for row in range(count):
        top = 8 * place[row]
        for finding, (value, left) in enumerate(((250, 0), (5, 8))):
            if labels[row, finding]:
                pixels[row, top : top + 8, left : left + 8] = value
        seen = [name for name, on in zip(FINDINGS, labels[row], strict=True) if on]
        found = " and ".join(f"{PLACES[place[row]]} {name} square" for name in seen)
        reports.append(f"there is {found}" if seen else "no finding")
    has_image = np.array(images if images is not None else [True] * count, dtype=bool)
    has_text = np.array(texts if texts is not None else [True] * count, dtype=bool)
    pixels[~has_image] = 0
    return Split(
        pixels=pixels,
        has_image=has_image,
        texts=tuple(t if on else "" for t, on in zip(reports, has_text, strict=True)),
        has_text=has_text,
        labels=labels,
        labelled=np.ones(count, dtype=bool),
        patients=np.arange(count, dtype=np.int64),
    )


PROMPTS = {
    name: Prompts(positive=(f"{name} square seen",), negative=("no finding",)) for name in FINDINGS
}


def make_site(
    name: str = "site",
    kind: str = "paired",
    counts: tuple[int, int, int] = (48, 24, 24),
    seed: int = 0,
) -> SiteData:
    """A site of one kind: ``paired``, ``image``, ``text`` or ``unpaired``."""
    splits: dict[SplitName, Split] = {}
    for number, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        even = [row % 2 == 0 for row in range(count)]
        images = {"text": [False] * count, "unpaired": even}.get(kind)
        texts = {"image": [False] * count, "unpaired": [not on for on in even]}.get(kind)
        splits[split] = make_split(count, 1000 * seed + number, images=images, texts=texts)
    origin = DatasetOrigin(origin="phantom")
    return SiteData(name, FINDINGS, PROMPTS, splits, origin)


@pytest.fixture(scope="session")
def tiny_site_data() -> SiteData:
    """A paired site: 48 / 24 / 24 records of two findings with reports."""
    return make_site()


@pytest.fixture(scope="session")
def site_of() -> Callable[..., SiteData]:
    """``make_site``, for tests that need other kinds or sizes."""
    return make_site


@pytest.fixture(scope="session")
def small_job(clip_folder: Path) -> JobConfig:
    """A job on the small CLIP checkpoint: 2 rounds of 4 steps, batches of 16, rank 4."""
    return JobConfig.model_validate(
        {
            "name": "small",
            "rounds": 2,
            "model": {"base": str(clip_folder), "precision": "float32"},
            "lora": {"rank": 4, "alpha": 8},
            "train": {"steps": 4, "batch_size": 16, "shift_pixels": 1},
            "personalize": {"rank": 4, "steps": 6},
        }
    )


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that says what is wrong."""
        return self.err.splitlines()[0]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Run ``consilia`` in this process, in an environment that says nothing."""
    monkeypatch.delenv("CONSILIA_HISTORY", raising=False)
    monkeypatch.delenv("CONSILIA_TRACEBACK", raising=False)
    # A stopped command ends its process and no longer listens; this process goes on.
    monkeypatch.setattr("simulations.cli._finish_undisturbed", lambda: None)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["consilia", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run
