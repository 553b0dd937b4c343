"""Texts to tokens: a checkpoint's own tokenizer, cut and padded as its text tower takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.errors import BaseModelError

_LENGTHS = 8


@dataclass(frozen=True)
class Tokens:
    """Texts as the text tower takes them.

    Attributes:
        ids: (b, t) int64, padded on the right.
        mask: (b, t) int64, 1 where there is a token.
    """

    ids: Tensor
    mask: Tensor


class TextPipeline:
    """A checkpoint's tokenizer.

    Attributes:
        tokenizer: Of the transformers library.
        max_tokens: Longest text, in tokens.
    """

    def __init__(
        self,
        folder: Path,
        text_config: Any,  # noqa: ANN401 - transformers' config
        max_tokens: int | None,
        *,
        fixed_length: bool,
    ) -> None:
        """Load the tokenizer.

        Args:
            folder: Of the checkpoint.
            text_config: Of its text tower.
            max_tokens: Longest text; the tower's limit if ``None``.
            fixed_length: Whether the family takes every text at its full length.

        Raises:
            BaseModelError: If it cannot be loaded, or the tower takes no text of that length.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415 - takes a second

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise BaseModelError(
                f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}); expected "
                "tokenizer.json, or the vocabulary files that its tokenizer_config.json names"
            ) from None
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        limit = int(min(text_config.max_position_embeddings, self.tokenizer.model_max_length))
        if max_tokens is not None and max_tokens > limit:
            raise BaseModelError(
                f"model.max_tokens = {max_tokens}: this base takes texts of up to {limit} tokens"
            )
        self.max_tokens = max_tokens or limit
        self._fixed_length = fixed_length

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text, cut to ``max_tokens``, not padded."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def pad(
        self, ids: Sequence[Sequence[int]], device: torch.device, precision: torch.dtype
    ) -> Tokens:
        """Pad token ids on the right: to the longest given, or as the family demands.

        In bfloat16 to the next multiple of eight: kernels are made anew for every other length.
        """
        longest = max((len(row) for row in ids), default=1)
        width = self.max_tokens
        if not self._fixed_length:
            step = _LENGTHS if precision == torch.bfloat16 else 1
            width = min(width, -(-longest // step) * step)
        padded = np.full((len(ids), width), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return Tokens(torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device))
