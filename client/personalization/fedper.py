"""Private projection: a shared body, and a last layer of every site's own.

After FedPer (Arivazhagan et al., 2019, https://arxiv.org/abs/1912.00818), where the body is
shared and the last layers are personal. A dual encoder has no classifier; its last layers are the
two projections into the common space. They are federated like all others, so that a new site has
a whole model, and become a site's own after the last round, on the frozen body: in this order
it is FedBABU (Oh et al., 2022, https://arxiv.org/abs/2106.06042), not FedPer's joint training.
"""

from collections.abc import Sequence

from client.personalization.base import Fitted, PersonalTask
from client.personalization.cohort import modules_of
from client.personalization.finetune import continue_shared
from shared.adapter import TOWERS
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder


def fedper(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Fitted]:
    """Train the projections on from the shared adapter; everything below stays as shared."""
    layers = [module for module in modules_of(encoder, TOWERS) if "projection" in module]
    if not layers:
        refusal = TrainingError(
            "no-projection",
            "personalize.method = 'fedper' needs adapted projections, and this base has none; "
            "use 'finetune' or 'duet', or a base of the CLIP family with projections",
        )
        return [refusal for _ in tasks]
    return continue_shared(encoder, tasks, job, layers)
