"""``[model]`` and ``[lora]``: the frozen base, and what is trained of it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.config.table import Table

Precision = Literal["auto", "float32", "bfloat16"]


class ModelConfig(Table):
    """``[model]``: the frozen encoder that all sites start from."""

    base: Annotated[str, Field(min_length=1)] = "consilia-tiny"
    """``consilia-tiny``, a local folder, or a Hugging Face hub id of the CLIP family."""
    bases: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """creamfl: sites that start from another base than ``base``, and which."""
    sha256: str | None = None
    """Expected sha256 of the base weights; the run refuses another."""
    precision: Precision = "auto"
    """Of frozen weights and activations; trained factors are always float32. ``auto``: bfloat16
    where the device is faster with it (GPUs, CPUs with AMX or AVX512-BF16)."""
    max_tokens: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Longest text in tokens; the base's own limit if not given."""
    compile: bool = False
    """Let torch compile norms and activations (``torch.compile``); plain CLIP models only. It takes
    minutes and changes results by rounding. Off: on CPUs a run does not earn that back, and on
    GPUs it was not measured."""


class LoraConfig(Table):
    """``[lora]``: low-rank adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: list[str] = ["attention", "mlp", "projection"]
    """Groups (attention, mlp, projection) or module names such as ``q_proj``."""
    layers: str = "all"
    """``all``; ``top:N``: only the N last layers of each tower; ``top:1/3``: that share of them."""
    ranks: dict[str, Annotated[int, Field(ge=1, le=256)]] = {}
    """Ranks of sites that train fewer than ``rank`` columns, by site (docs/methods.md)."""

    @model_validator(mode="after")
    def _no_rank_above(self) -> Self:
        for site, rank in self.ranks.items():
            if rank > self.rank:
                raise ValueError(
                    f"lora.ranks gives {site!r} rank {rank}, more than lora.rank = {self.rank}; "
                    "raise lora.rank, the largest of all, or give the site a smaller one"
                )
        return self

    def rank_of(self, site: str) -> int:
        """Return how many columns a site trains."""
        return self.ranks.get(site, self.rank)

    @property
    def scaling(self) -> float:
        """``alpha / rank``, the factor s in W0 + s B A."""
        return self.alpha / self.rank
