"""Base checkpoints: where they are, whether they are the right ones, and what they need.

Only safetensors are read and no code of a checkpoint is ever run. A base is known by the
digest of its weights and configuration, the same on every machine.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.config import Precision
from shared.errors import BaseModelError

TINY = "consilia-tiny"


@dataclass(frozen=True)
class Family:
    """How one family of dual encoders wants its texts.

    Attributes:
        fixed_length: Texts are padded to the longest the model takes (SigLIP pools the last
            position, padding or not); otherwise to the longest of the batch.
        mask: Whether the text tower looks at the attention mask. A causal tower that pools at
            the end token needs none, and runs faster without.
    """

    fixed_length: bool = False
    mask: bool = True


FAMILIES: dict[str, Family] = {
    "clip": Family(mask=False),  # Radford et al., 2021, https://arxiv.org/abs/2103.00020
    "metaclip_2": Family(mask=False),  # Chuang et al., 2025, https://arxiv.org/abs/2507.22062
    "siglip": Family(
        fixed_length=True, mask=False
    ),  # Zhai et al., https://arxiv.org/abs/2303.15343
    "altclip": Family(),  # Chen et al., 2022, https://arxiv.org/abs/2211.06679
    "chinese_clip": Family(),  # Yang et al., 2022, https://arxiv.org/abs/2211.01335
}
"""By ``model_type`` of the checkpoint's config.json."""


def find_base(base: str) -> Path:
    """Return the folder of a base: packaged, local, or fetched from the Hugging Face hub.

    Raises:
        BaseModelError: If there is none.
    """
    if base == TINY:
        from shared.model.tiny import tiny_path  # noqa: PLC0415 - only when it is asked for

        return tiny_path()
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base):
        raise BaseModelError(
            f"model.base = {base!r}: no such folder; expected {TINY!r}, a folder with config.json "
            "and *.safetensors, or a hub id such as 'openai/clip-vit-base-patch32'"
        )
    return _download(base)


def _download(base: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and often not needed

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(base, allow_patterns=wanted))
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(
            f"model.base = {base!r}: neither a local folder nor to be had from the hub "
            f"({type(error).__name__}); copy the checkpoint here and give its folder"
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """Return the checkpoint's safetensors, sorted by name.

    Raises:
        BaseModelError: If there are none, or an index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        pickled = any(folder.glob("*.bin"))
        raise BaseModelError(
            f"{folder}: no model.safetensors"
            + (
                "; its .bin weights are pickled Python, which is never loaded: convert them "
                "with save_pretrained(..., safe_serialization=True) on a machine that may run it"
                if pickled
                else "; expected a Hugging Face checkpoint of the CLIP family"
            )
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise BaseModelError(f"{index}: damaged ({type(error).__name__})") from None
    files = [folder / Path(name).name for name in names]
    for file in files:
        if not file.is_file():
            raise BaseModelError(f"{folder}: {file.name} is named in {index.name} but missing")
    return files


def base_digest(folder: Path) -> str:
    """Return the sha256 of a base: name and digest of its config.json and weight files."""
    config = folder / "config.json"
    if not config.is_file():
        raise BaseModelError(f"{folder}: no config.json; expected a Hugging Face checkpoint")
    digest = hashlib.sha256()
    for file in [config, *weight_files(folder)]:
        state = file.stat()
        digest.update(f"{file.name}|".encode())
        digest.update(_file_sha256(str(file.resolve()), state.st_size, state.st_mtime_ns).encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_sha256(path: str, _size: int, _changed: int) -> str:
    """Digest of a file, read once a process unless size or time of change differ."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(folder: Path) -> tuple[nn.Module, Family]:
    """Load a base in float32, in evaluation mode.

    Raises:
        BaseModelError: Unknown family, weights missing from the files, or damaged files.
    """
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415 - takes a second
    from transformers.utils import logging  # noqa: PLC0415 - as above

    weight_files(folder)
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{folder}: config.json cannot be used: {_line(error)}") from None
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BaseModelError(
            f"{folder}: model_type {config.model_type!r} is not one of the dual encoders that "
            f"are known: {', '.join(FAMILIES)}"
        )
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise many types
        raise BaseModelError(f"{folder}: weights cannot be loaded: {_line(error)}") from None
    _complete(folder, report)
    model.eval()
    return model, family


def _complete(folder: Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would silently fill with random numbers."""
    missing = sorted(report.get("missing_keys", ())) + sorted(
        str(item[0]) for item in report.get("mismatched_keys", ())
    )
    if missing:
        raise BaseModelError(
            f"{folder}: {len(missing)} weights are missing or of another shape, {missing[0]} "
            "first; the files do not belong to this config.json"
        )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def choose_device(device: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu`` or ``cuda``; on CUDA, ask for repeatability.

    Raises:
        BaseModelError: If CUDA is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise BaseModelError("device = 'cuda': no CUDA device here; use 'auto' or 'cpu'")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("warn")  # inductor is told where it is used
    return torch.device(device)


def choose_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return the type of frozen weights and activations; trained factors are always float32.

    ``auto`` takes bfloat16 where the device multiplies it several times faster than float32:
    CUDA, and CPUs with AMX or AVX512-BF16.
    """
    if wanted == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and _multiplies_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _multiplies_bfloat16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
