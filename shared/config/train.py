"""``[train]`` and ``[personalize]``: what a site does with its records."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shared.config.table import Table

PersonalizationMethod = Literal[
    "duet", "none", "finetune", "local", "ditto", "fedper", "feddat", "own-factor"
]


class TrainConfig(Table):
    """``[train]``: what a site does in one round."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    steps: Annotated[int, Field(ge=1)] | None = 8
    """Optimiser steps a round; or ``epochs``."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    schedule: Literal["constant", "cosine"] = "cosine"
    """Of the learning rate over all rounds of the run; a warm-up starts every round."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    shift_pixels: Annotated[int, Field(ge=0)] = 2
    """Images are shifted at random by up to this many pixels."""
    label_similarity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Kappa of the soft InfoNCE targets: weight of records that share labels; 0 is CLIP with
    identical texts as positives."""
    anchor: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the anchor that keeps a lone tower in the frozen other one's space."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """FedProx: mu / 2 times the squared distance to the received factors."""
    balance: Annotated[float, Field(ge=0, le=10)] = 0.0
    """OGM-GE: a of the factor 1 - tanh(a rho) on the steps of the tower whose gradient norm is rho
    times the other one's, rho > 1; 0 leaves both alone, the paper uses 0.1 to 0.8."""
    prefix_cache_mb: Annotated[int, Field(ge=0)] = 512
    """MB (2**20 bytes) of memory in which a process keeps what layers below the first adapted one
    (``lora.layers = 'top:N'``) give, over all its sites; 0 computes it in every step. Pictures
    need ``shift_pixels = 0``. It changes no result beyond rounding."""

    @model_validator(mode="before")
    @classmethod
    def _epochs_replace_steps(cls, data: Any) -> Any:  # noqa: ANN401 - whatever was read
        if isinstance(data, dict) and data.get("epochs") is not None:
            return {"steps": None, **data}
        return data

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both and not neither")
        return self


class PersonalizeConfig(Table):
    """``[personalize]``: the adapter that never leaves a site (docs/personalization.md)."""

    method: PersonalizationMethod = "duet"
    rank: Annotated[int, Field(ge=1, le=256)] = 8
    """Of duet and local; the others go on from the shared factors and have their rank."""
    steps: Annotated[int, Field(ge=0)] = 60
    """Optimiser steps of the fit on the finished shared adapter; 0 uses that as it is. Not of
    own-factor, which the rounds have trained."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    distill: Annotated[float, Field(ge=0)] = 0.1
    """duet: lambda_P, weight of the feature distillation from shared to personal."""
    proximal: Annotated[float, Field(ge=0)] = 1.0
    """ditto: mu / 2 times the squared distance to the shared factors; 0 is finetune."""
    use: Literal["if-better", "always"] = "if-better"
    """Of the own adapter: in a tower where it beats the shared one on the site's validation
    records, or always, as in papers that do not look."""
    grid_from: Annotated[int, Field(ge=1)] = 200
    """From so many validation pairs on, alpha is chosen from 0, 1/4, 1/2, 3/4, 1."""

    @property
    def fits(self) -> bool:
        """Whether the method gives sites something of their own."""
        return self.method != "none" and (self.steps > 0 or self.method == "own-factor")
