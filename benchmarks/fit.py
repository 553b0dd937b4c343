"""What every site does in a round, whoever carries it out."""

from dataclasses import dataclass
from typing import Final

ATTENTION: Final = ("q_proj", "v_proj")
"""The query and value projections, peft's own choice for CLIP."""

ALL_LINEAR: Final = (
    *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    *("visual_projection", "text_projection"),
)
"""Every linear layer of both towers."""


@dataclass(frozen=True)
class LocalFit:
    """What a site does in a round.

    Attributes:
        batch_size: Pairs of a step.
        steps: AdamW steps.
        learning_rate: The same in every step; there is no weight decay.
    """

    batch_size: int
    steps: int
    learning_rate: float = 1e-3
