"""The adapter that never leaves a site.

``duet``: an additive residual on the frozen, finished shared adapter, distilled one way from
shared to personal, with a mixing weight per tower that the site's own validation records
choose. The pieces: two adapters, one shared and one private (FedDAT, Chen et al., 2024,
https://arxiv.org/abs/2308.12305); the private one fitted after the shared one is final
(FedDPA-F, Yang et al., 2024, https://arxiv.org/abs/2403.19211); feature distillation (CLIP-KD,
https://arxiv.org/abs/2307.12732). Because it is a residual, alpha = 0 is exactly the shared
model: the personal adapter is used only where it wins on held-out records of the site.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from client.batches import draw_batches, prepare
from client.data.records import SiteData
from client.losses import (
    Features,
    HeldOut,
    PromptSet,
    ask_teacher,
    embed_prompts,
    encode_all,
    held_out_losses,
)
from client.training import (
    Schedule,
    check_learnable,
    fit,
    fresh_factors,
    site_loss,
)
from shared.adapter import Array, SharedAdapter, Tower
from shared.config import JobConfig, PersonalizationMethod
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

_COARSE = (0.0, 1.0)
_FINE = (0.0, 0.25, 0.5, 0.75, 1.0)

Alpha = dict[Tower, float]


@dataclass(frozen=True)
class Personalized:
    """A site's own adapter and how much of it to use.

    Attributes:
        adapter: Factors of the site's towers, by PEFT's name; empty if there is none.
        alpha: Mixing weight per tower of the site, 0..1.
        validation: Mean validation loss in nats of ``shared``, ``personal`` (alpha 1 in every
            tower) and ``chosen``; empty if nothing could be scored.
    """

    adapter: dict[str, Array]
    alpha: Alpha
    validation: Mapping[str, float] = field(default_factory=dict)


Personalize = Callable[[DualEncoder, SiteData, SharedAdapter, JobConfig, int], Personalized]


def personalize(
    encoder: DualEncoder, data: SiteData, shared: SharedAdapter, job: JobConfig, seed: int
) -> Personalized:
    """Fit the site's own adapter on the finished shared one, by the job's method.

    Raises:
        TrainingError: If there is nothing to learn from, or the loss is not finite.
    """
    return PERSONALIZATIONS[job.personalize.method](encoder, data, shared, job, seed)


def none(
    encoder: DualEncoder,  # noqa: ARG001 - every method has the same signature
    data: SiteData,
    shared: SharedAdapter,  # noqa: ARG001
    job: JobConfig,  # noqa: ARG001
    seed: int,  # noqa: ARG001
) -> Personalized:
    """Use the shared adapter as it is."""
    return Personalized({}, dict.fromkeys(data.towers, 0.0))


def duet(
    encoder: DualEncoder, data: SiteData, shared: SharedAdapter, job: JobConfig, seed: int
) -> Personalized:
    """Fit a residual on the frozen shared adapter, then choose how much of it to use.

    Returns:
        The residual; alpha is 0 for every tower that does not win on validation.
    """
    encoder.use(AdapterView(shared))
    prompts = embed_prompts(encoder, data)
    if job.personalize.steps == 0:
        return none(encoder, data, shared, job, seed)
    adapter = _fit_residual(encoder, data, prompts, shared, job, seed)
    alpha, validation = _choose(encoder, data, prompts, shared, adapter, job)
    return Personalized(adapter, alpha, validation)


def _fit_residual(
    encoder: DualEncoder,
    data: SiteData,
    prompts: PromptSet | None,
    shared: SharedAdapter,
    job: JobConfig,
    seed: int,
) -> dict[str, Array]:
    config, rank = job.personalize, encoder.personal_rank
    train = check_learnable(encoder, data)
    rng = np.random.default_rng(seed)
    start: dict[str, Array] = {}
    for layer in encoder.layout.layers:
        if layer.tower in data.towers:
            start |= fresh_factors(layer.module, layer.outputs, layer.inputs, rank, rng)
    plan = list(islice(draw_batches(train, job.train.batch_size, rng), config.steps))
    teacher = ask_teacher(encoder, train, plan, lone=config.distill, paired=config.distill)
    encoder.use(AdapterView(shared, start, dict.fromkeys(data.towers, 1.0)))
    parameters = encoder.parameters_of("personal", towers=data.towers)
    losses_of = site_loss(encoder, train, prompts, teacher, job.train, rng)
    total = config.steps if job.train.schedule == "cosine" else 0
    schedule = Schedule(config.learning_rate, job.train.warmup_steps, total)
    fit(parameters, plan, losses_of, job.train, schedule, encoder.layout)
    return encoder.read_adapter("personal", towers=data.towers)


def _choose(
    encoder: DualEncoder,
    data: SiteData,
    prompts: PromptSet | None,
    shared: SharedAdapter,
    adapter: dict[str, Array],
    job: JobConfig,
) -> tuple[Alpha, dict[str, float]]:
    """Score every mixture on the validation split and pick by the one-standard-error rule."""
    val = prepare(encoder, data, "val")
    towers = data.towers
    fine = len(val.everything.pairs) >= job.personalize.grid_from
    grid = _FINE if fine else _COARSE
    by_alpha: dict[float, Features] = {}
    for value in grid:
        encoder.use(AdapterView(shared, adapter, dict.fromkeys(towers, value)))
        by_alpha[value] = encode_all(encoder, val, val.everything)
    scored: dict[tuple[float, ...], HeldOut] = {}
    for combination in itertools.product(grid, repeat=len(towers)):
        of_tower = dict(zip(towers, combination, strict=True))
        mixed = Features(
            by_alpha[of_tower.get("image", 0.0)].image, by_alpha[of_tower.get("text", 0.0)].text
        )
        kappa = job.train.label_similarity
        scored[combination] = held_out_losses(mixed, val, prompts, encoder.logit_scale, kappa)
    losses = {combination: found.losses for combination, found in scored.items()}
    nothing = (0.0,) * len(towers)
    rows = scored[nothing].rows
    best = choose_by_standard_error(losses, nothing, val.split.patients[rows])
    validation = {
        name: float(losses[combination].mean())
        for name, combination in (
            ("shared", nothing), ("personal", (1.0,) * len(towers)), ("chosen", best),
        )
        if len(rows)
    }  # fmt: skip
    return dict(zip(towers, best, strict=True)), validation


def choose_by_standard_error(
    losses: Mapping[tuple[float, ...], NDArray[np.float64]],
    reference: tuple[float, ...],
    patients: NDArray[np.int64],
) -> tuple[float, ...]:
    """Return the candidate of least mean loss among those that beat the reference clearly.

    Clearly: by more than one standard error of the mean paired difference, over patients,
    since records of one patient are not independent (Breiman et al., 1984, chapter 3, for the
    one-standard-error rule). A difference that is not finite never wins.

    Args:
        losses: Per candidate, the loss of every held-out record.
        reference: The candidate that is kept if nothing wins.
        patients: Patient of every record.
    """
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1 if len(patient) else 0
    best, least = reference, np.inf
    for candidate, found in losses.items():
        if candidate == reference or count < 2:
            continue
        gain = np.bincount(patient, losses[reference] - found) / np.bincount(patient)
        error = gain.std(ddof=1) / np.sqrt(count)
        if gain.mean() > error and found.mean() < least:
            best, least = candidate, float(found.mean())
    return best


PERSONALIZATIONS: dict[PersonalizationMethod, Personalize] = {
    "duet": duet,  # residual on the finished shared adapter, alpha by validation
    "none": none,
}
