"""Ditto: own factors v that are pulled to the shared ones w, min F(v) + mu / 2 |v - w|^2.

Li et al., 2021, https://arxiv.org/abs/2012.04221. The paper states a bi-level problem, in which
w is the solution of the federation and v is solved for given w; its solver takes some steps on v
in every round only because w is at hand then. Here v is solved for once, on the finished w, and
begins there. Distances are between factors, which are what is trained. mu = 0 is ``finetune``.
"""

from collections.abc import Sequence

from client.personalization.base import Fitted, PersonalTask
from client.personalization.cohort import modules_of
from client.personalization.finetune import continue_shared
from shared.adapter import TOWERS
from shared.config import JobConfig
from shared.model.encoder import DualEncoder


def ditto(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Fitted]:
    """Train on from the shared adapter, held to it by ``personalize.proximal``."""
    layers = modules_of(encoder, TOWERS)
    return continue_shared(encoder, tasks, job, layers, job.personalize.proximal)
