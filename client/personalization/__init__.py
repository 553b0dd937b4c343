"""The adapter that never leaves a site: one file per method, with its paper.

Every method fits a residual on the frozen, finished shared adapter (``base.Fit``). Because it is
a residual, alpha = 0 is exactly the shared model, and the own adapter is used only where it wins
on held-out records of the site (``choice``), whichever method made it. Nothing is ever sent.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from client.losses import embed_prompts
from client.personalization.base import (
    Fit,
    Fitted,
    Outcome,
    Personalized,
    PersonalTask,
)
from client.personalization.choice import choose_alpha, choose_by_standard_error
from client.personalization.ditto import ditto
from client.personalization.duet import duet
from client.personalization.feddat import feddat
from client.personalization.fedper import fedper
from client.personalization.finetune import finetune
from client.personalization.local import local
from client.personalization.none import none
from client.personalization.own_factor import own_factor
from client.training import in_halves
from shared.config import JobConfig, PersonalizationMethod
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

__all__ = [
    "PERSONALIZATIONS",
    "Outcome",
    "PersonalTask",
    "Personalized",
    "choose_by_standard_error",
    "personalize",
]

PERSONALIZATIONS: Final[Mapping[PersonalizationMethod, Fit]] = {
    "duet": duet,  # residual, held to the shared model by one-way distillation
    "none": none,  # shared-only
    "finetune": finetune,  # goes on from the shared adapter
    "local": local,  # on the base alone
    "ditto": ditto,  # goes on from the shared adapter, and is pulled back to it
    "fedper": fedper,  # goes on in the projections only
    "feddat": feddat,  # dual-adapter teacher, mutual distillation
    "own-factor": own_factor,  # what fedsa's rounds left the site; nothing is fitted
}


def personalize(
    encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig
) -> list[Outcome]:
    """Fit every site's own adapter on the finished shared one, by the job's method.

    Returns:
        Per task what came of it, or why nothing did: nothing to learn from, a loss that is not
        finite, not enough memory. Alpha is 0 for every tower that does not win on validation,
        unless ``personalize.use`` is ``always``.
    """
    fit = PERSONALIZATIONS[job.personalize.method if job.personalize.fits else "none"]
    by_shared: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        by_shared.setdefault(task.shared.sha256(), []).append(number)
    fitted: dict[int, Fitted] = {}
    for numbers in by_shared.values():
        chosen = [tasks[number] for number in numbers]
        found = in_halves(lambda some: fit(encoder, some, job), chosen)
        fitted |= dict(zip(numbers, found, strict=True))
    return [_mixed(encoder, task, fitted[number], job) for number, task in enumerate(tasks)]


def _mixed(encoder: DualEncoder, task: PersonalTask, adapter: Fitted, job: JobConfig) -> Outcome:
    """Choose how much of a site's own adapter is used."""
    if isinstance(adapter, TrainingError):
        return adapter
    if not adapter:
        return Personalized({}, dict.fromkeys(task.data.towers, 0.0))
    encoder.use(AdapterView(task.shared))
    prompts = embed_prompts(encoder, task.data)
    alpha, validation = choose_alpha(encoder, task.data, prompts, task.shared, adapter, job)
    return Personalized(adapter, alpha, validation)
