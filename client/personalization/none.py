"""Shared-only: every site uses the shared adapter as it is.

McMahan et al., 2017, https://arxiv.org/abs/1602.05629. What any own adapter has to beat.
"""

from collections.abc import Sequence

from client.personalization.base import Fitted, PersonalTask
from shared.config import JobConfig
from shared.model.encoder import DualEncoder


def none(
    encoder: DualEncoder,  # noqa: ARG001 - every method has the same signature
    tasks: Sequence[PersonalTask],
    job: JobConfig,  # noqa: ARG001
) -> list[Fitted]:
    """Fit nothing."""
    return [{} for _ in tasks]
