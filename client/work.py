"""Requests that are open, their training and validation: for many sites of one process at once.

Knows nothing of policy or release; what a request needs has been checked before it gets here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from client.data.records import SiteData
from client.features import Exchange, begin_exchange
from client.own_factor import with_own
from client.patient_privacy import Promise
from client.personalization import Personalized, PersonalTask, personalize
from client.private_training import NoisedSum, give_to_the_sum, train_privately
from client.proxy import ProxySet
from client.training import SiteTask, TrainedAdapter, train_shared
from client.validation import validation_losses
from shared.adapter import FACTORS, Adapter, Array, Factor, SharedAdapter, Tower
from shared.errors import TrainingError
from shared.messages import Request
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


@dataclass(frozen=True)
class Work:
    """One request that the policy allows, and what is needed to answer it.

    Attributes:
        request: The request.
        question: What tells the request from others (``shared.messages.question_of``).
        kept: What was answered to the same question before, as the answer to this attempt.
        encoder: Of the request's job.
        data: The site's records.
        shared: The adapter that the request is about; empty for ``describe``.
        started: Monotonic seconds.
        own: The factors that the site keeps to itself; empty unless the rule leaves it any.
        proxy: The public pairs, for jobs whose sites have them.
        promise: What holds for the patients, in a training with differential privacy.
    """

    request: Request
    question: str
    kept: bytes | None
    encoder: DualEncoder
    data: SiteData
    shared: SharedAdapter
    started: float
    own: Adapter = field(default_factory=dict)
    proxy: ProxySet | None = None
    promise: Promise | None = None

    @cached_property
    def model(self) -> SharedAdapter:
        """The site's function: the shared adapter, with the site's own factors in it."""
        return with_own(self.shared, self.own)


@dataclass(frozen=True)
class Trained:
    """A trained adapter, and the validation loss of what it started from, in nats.

    ``features`` are what leaves in its place, by tower, where sites exchange features; ``noised``
    is what leaves where sites give noised sums of gradients, and nothing was trained.
    """

    adapter: TrainedAdapter
    loss_before: float | None
    features: Mapping[Tower, Array] | None = None
    noised: NoisedSum | None = None


@dataclass(frozen=True)
class Validated:
    """The validation loss of the adapter that a request is about, in nats."""

    loss: float | None


def alike(works: Sequence[Work]) -> list[list[int]]:
    """Return which works can be carried out together: one kind, one encoder, one job."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, work in enumerate(works):
        request = work.request
        # What one site of a cohort did not answer yet makes the others train again; but for those
        # who pay for every training with their patients' privacy, and those whose change was
        # masked before: another one of the same round would be refused.
        once = request.job.privacy.for_patients or request.secure is not None
        kept = work.kept is not None and once
        key = (request.kind, request.round, id(work.encoder), request.job_sha256, kept)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def train_together(works: Sequence[Work]) -> list[Trained | Exception]:
    """Train every work's factors; each is validated first under the adapter that it received.

    Returns:
        Per work what came of it; one that fails does not keep the others from training.
    """
    if works[0].request.job.privacy.for_patients:
        return [_train_privately(work) for work in works]
    results: list[Trained | Exception | None] = [None] * len(works)
    able = [number for number, work in enumerate(works) if _can_train(work)]
    ready: list[tuple[int, float | None]] = []
    validated = validate_together([works[number] for number in able])
    for number, measured in zip(able, validated, strict=True):
        if isinstance(measured, Validated):
            ready.append((number, measured.loss))
        else:
            results[number] = measured
    if ready:
        tasks = [_task(works[number]) for number, _ in ready]
        first = works[ready[0][0]]
        found = train_shared(first.encoder, tasks, first.request.job)
        for (number, before), task, trained in zip(ready, tasks, found, strict=True):
            if isinstance(trained, TrainingError):
                results[number] = trained
            else:
                features = _features(first.encoder, task, trained)
                results[number] = Trained(trained, before, features)
    nothing = _nothing_to_train()
    return [nothing if result is None else result for result in results]


def _train_privately(work: Work) -> Trained | Exception:
    """Train one work's factors with noise; nothing is measured that would leave without any."""
    if work.promise is None or not _can_train(work):
        return _nothing_to_train()
    try:
        job, promise = work.request.job, work.promise
        if promise.grid is not None:
            noised = give_to_the_sum(work.encoder, _task(work), job, promise.steps, promise.grid)
            return Trained(TrainedAdapter({}, None, 1, {}, {}), None, noised=noised)
        found = train_privately(work.encoder, _task(work), job, promise.steps)
    except Exception as error:
        return error
    return Trained(found, None)


def _nothing_to_train() -> TrainingError:
    return TrainingError("no-training-data", "no tower to train in this round")


def personalize_together(works: Sequence[Work]) -> list[Personalized | Exception]:
    """Fit every work's personal adapter; as ``train_together``."""
    tasks = [PersonalTask(w.data, w.shared, w.request.seed, w.own) for w in works]
    return list(personalize(works[0].encoder, tasks, works[0].request.job))


def validate_together(works: Sequence[Work]) -> list[Validated | Exception]:
    """Measure every work's model on the site's validation records.

    Sites with equal models are encoded side by side: by content, so that who is in a chunk
    depends on ``works`` alone.
    """
    by_model: dict[str, list[int]] = {}
    for number, work in enumerate(works):
        by_model.setdefault(work.model.sha256(), []).append(number)
    results: dict[int, Validated | Exception] = {}
    for numbers in by_model.values():
        chosen = [works[number] for number in numbers]
        results |= dict(zip(numbers, _validate(chosen), strict=True))
    return [results[number] for number in range(len(works))]


def _validate(works: Sequence[Work]) -> list[Validated | Exception]:
    """Measure one adapter at some sites; if that fails, at each alone."""
    first = works[0]
    sites, view = [work.data for work in works], AdapterView(shared=first.model)
    try:
        losses = validation_losses(first.encoder, sites, view, first.request.job)
        return [Validated(loss) for loss in losses]
    except Exception as error:
        if len(works) == 1:
            return [error]
    return [_validate([work])[0] for work in works]


def _can_train(work: Work) -> bool:
    """Whether the request gives a weight to a tower of the site, and names factors to train."""
    return bool(set(work.request.weights) & set(work.data.towers) and work.request.factors)


def _task(work: Work) -> SiteTask:
    request = work.request
    kinds = {*request.factors, *request.job.aggregate.private_factors}
    factors: tuple[Factor, ...] = tuple(factor for factor in FACTORS if factor in kinds)
    return SiteTask(
        work.data,
        work.model,
        factors,
        request.seed,
        request.round,
        _exchange(work),
        request.job.lora.rank_of(request.site),
    )


def _exchange(work: Work) -> Exchange | None:
    """Begin the exchange of features with what the site starts from, if the job has one."""
    if work.proxy is None or not work.request.job.aggregate.shares_features:
        return None
    towers = [tower for tower in work.data.towers if tower in work.request.weights]
    common, config = work.shared.features, work.request.job.proxy
    return begin_exchange(work.encoder, work.proxy, common, work.model, towers, config)


def _features(
    encoder: DualEncoder, task: SiteTask, trained: TrainedAdapter
) -> dict[Tower, Array] | None:
    """Return what the trained model makes of the public pairs."""
    if task.exchange is None:
        return None
    model = SharedAdapter({**task.start.factors, **trained.factors})
    return task.exchange.sent(encoder, model)
