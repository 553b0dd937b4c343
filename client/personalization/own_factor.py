"""The rounds' own factor: the site's B beside the finished shared A; nothing is fitted.

Guo et al., 2025, https://arxiv.org/abs/2410.01463: FedSA-LoRA makes every site's function
``W0 + s B_k A`` as it trains, so there is nothing left to do after the last round. The shared
adapter has B = 0 and is the base, so the own function as a residual on it is ``B_k A`` itself.
Where sites exchange features and no factor at all (``creamfl``), A is the site's own as well.
"""

from collections.abc import Sequence

from client.personalization.base import Fitted, PersonalTask
from shared.adapter import Array, factor_name, module_of
from shared.config import JobConfig
from shared.model.encoder import DualEncoder


def own_factor(
    encoder: DualEncoder,  # noqa: ARG001 - every method has the same signature
    tasks: Sequence[PersonalTask],
    job: JobConfig,  # noqa: ARG001
) -> list[Fitted]:
    """Return B_k and A of the layers that a site trained; nothing if it never did."""
    found: list[Fitted] = []
    for task in tasks:
        factors: dict[str, Array] = {}
        for name, own in task.own.items():
            a = factor_name(module_of(name), "A")
            factors |= {name: own, a: task.own[a] if a in task.own else task.shared.factors[a]}
        found.append(factors)
    return found
