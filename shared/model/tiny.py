"""Where the packaged base encoder, consilia-tiny, lies."""

import hashlib
from pathlib import Path
from typing import Final

from shared.errors import BaseModelError

TINY_FOLDER: Final[Path] = Path(__file__).parent / "consilia_tiny"
TINY_SHA256: Final[str] = "32497a91a9c3cf05b7f0306c334d3bb8a94435de71d6d66b82e1e08a93a6c559"


def tiny_path() -> Path:
    """The folder of consilia-tiny; only the weights' hash is checked.

    Raises:
        BaseModelError: If the weights are missing or are not the pinned ones.
    """
    weights = TINY_FOLDER / "model.safetensors"
    if not weights.is_file():
        raise BaseModelError(f"{weights}: missing, expected the packaged weights; reinstall")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != TINY_SHA256:
        raise BaseModelError(
            f"{weights}: sha256 {found[:12]}…, expected {TINY_SHA256[:12]}…; reinstall, or update "
            "the pin if the base was trained again"
        )
    return TINY_FOLDER
