"""Training objectives: pure functions of features, one file and one paper each."""

from collections.abc import Callable

from torch import Tensor

from shared.objectives.anchor import anchor
from shared.objectives.crd import crd
from shared.objectives.infonce import infonce
from shared.objectives.matching import matching
from shared.objectives.prompts import prompt_loss
from shared.objectives.relational import relational

OBJECTIVES: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "infonce": infonce,  # image and text of the same record
    "prompts": prompt_loss,  # one of the two, with labels
    "matching": matching,  # images and texts of different records, with labels
    "relational": relational,  # one of the two, without labels
    "anchor": anchor,  # whatever has no counterpart; and duet's distillation
    "crd": crd,  # distillation of pairs
}
