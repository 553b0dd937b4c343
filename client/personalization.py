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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from client.batches import draw_batches, prepare
from client.data.records import SiteData
from client.fitting import Learner, Schedule, fit
from client.losses import (
    Features,
    HeldOut,
    PromptSet,
    ask_teacher,
    embed_prompts,
    encode_all,
    held_out_losses,
)
from client.prefix_cache import keep_prefixes
from client.training import (
    check_learnable,
    context_of,
    fresh_factors,
    in_halves,
    site_blocks,
)
from shared.adapter import Array, SharedAdapter, Tower
from shared.config import JobConfig, PersonalizationMethod
from shared.errors import TrainingError
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


@dataclass(frozen=True)
class PersonalTask:
    """One site's personal fit.

    Attributes:
        data: Its records.
        shared: The finished shared adapter; frozen.
        seed: Of starts, batches and shifts.
    """

    data: SiteData
    shared: SharedAdapter
    seed: int


Outcome = Personalized | TrainingError
Personalize = Callable[[DualEncoder, Sequence[PersonalTask], JobConfig], list[Outcome]]


def personalize(
    encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig
) -> list[Outcome]:
    """Fit every site's own adapter on the finished shared one, by the job's method.

    Returns:
        Per task what came of it, or why nothing did: nothing to learn from, a loss that is not
        finite, not enough memory.
    """
    return PERSONALIZATIONS[job.personalize.method](encoder, tasks, job)


def none(
    encoder: DualEncoder,  # noqa: ARG001 - every method has the same signature
    tasks: Sequence[PersonalTask],
    job: JobConfig,  # noqa: ARG001
) -> list[Outcome]:
    """Use the shared adapter as it is."""
    return [Personalized({}, dict.fromkeys(task.data.towers, 0.0)) for task in tasks]


def duet(encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig) -> list[Outcome]:
    """Fit residuals on the frozen shared adapter, then choose how much of each to use.

    Returns:
        Per task its residual; alpha is 0 for every tower that does not win on validation.
    """
    if job.personalize.steps == 0:
        return none(encoder, tasks, job)
    fitted: dict[int, dict[str, Array] | TrainingError] = {}
    by_shared: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        by_shared.setdefault(task.shared.sha256(), []).append(number)
    for numbers in by_shared.values():
        chosen = [tasks[number] for number in numbers]
        found = in_halves(lambda some: _fit_residuals(encoder, some, job), chosen)
        fitted |= dict(zip(numbers, found, strict=True))
    results: list[Outcome] = []
    for number, task in enumerate(tasks):
        adapter = fitted[number]
        if isinstance(adapter, TrainingError):
            results.append(adapter)
            continue
        encoder.use(AdapterView(task.shared))
        prompts = embed_prompts(encoder, task.data)
        alpha, validation = _choose(encoder, task.data, prompts, task.shared, adapter, job)
        results.append(Personalized(adapter, alpha, validation))
    return results


def _fit_residuals(
    encoder: DualEncoder, tasks: Sequence[PersonalTask], job: JobConfig
) -> list[dict[str, Array] | TrainingError]:
    """Train one residual per task on the shared adapter that all tasks have in common."""
    encoder.use(AdapterView(tasks[0].shared))
    learners: list[Learner] = []
    starts: list[dict[str, Array]] = []
    results: list[dict[str, Array] | TrainingError | None] = []
    for task in tasks:
        try:
            learner, start = _residual_learner(encoder, task, job, row=len(learners))
        except TrainingError as error:
            results.append(error)
            continue
        learners.append(learner)
        starts.append(start)
        results.append(None)
    if learners:
        stack = encoder.new_stack(len(learners), job.personalize.rank)
        for row, start in enumerate(starts):
            stack.put(row, start)
        encoder.use_stack(stack, AdapterView(tasks[0].shared))
        fitted = fit(encoder, stack, learners, ("A", "B"), job.train)
        found = iter(
            result
            if isinstance(result, TrainingError)
            else stack.read(row, towers=learners[row].towers)
            for row, result in enumerate(fitted)
        )
        results = [next(found) if result is None else result for result in results]
        encoder.use(AdapterView(tasks[0].shared))
    return [result for result in results if result is not None]


def _residual_learner(
    encoder: DualEncoder, task: PersonalTask, job: JobConfig, row: int
) -> tuple[Learner, dict[str, Array]]:
    config, data = job.personalize, task.data
    train = check_learnable(encoder, data)
    keep_prefixes(encoder, train, job, training=True)
    prompts = embed_prompts(encoder, data)
    rng = np.random.default_rng(task.seed)
    start: dict[str, Array] = {}
    for layer in encoder.layout.layers:
        if layer.tower in data.towers:
            start |= fresh_factors(layer.module, layer.outputs, layer.inputs, config.rank, rng)
    plan = list(islice(draw_batches(train, job.train.batch_size, rng), config.steps))
    teacher = ask_teacher(encoder, train, plan, lone=config.distill, paired=config.distill)
    context = context_of(encoder, prompts, teacher, job)
    total = config.steps if job.train.schedule == "cosine" else 0
    learner = Learner(
        plan=site_blocks(train, plan, context, (job.train.shift_pixels, rng), row),
        steps=config.steps,
        schedule=Schedule(config.learning_rate, job.train.warmup_steps, total),
        towers=data.towers,
    )
    return learner, start


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
    keep_prefixes(encoder, val, job, training=False)
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
