"""Requests that are open, and their training: for many sites of one process at once.

Knows nothing of policy or release; what a request needs has been checked before it gets here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from client.data.records import SiteData
from client.personalization import Personalized, PersonalTask, personalize
from client.training import SiteTask, TrainedAdapter, train_shared, validation_loss
from shared.adapter import SharedAdapter
from shared.errors import TrainingError
from shared.messages import Request
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


@dataclass(frozen=True)
class Work:
    """One request that the policy allows, and what is needed to answer it.

    Attributes:
        request: The request.
        question: Digest of the request as it came.
        kept: The answer that was given to the very same request before.
        encoder: Of the request's job.
        data: The site's records.
        shared: The adapter that the request is about; empty for ``describe``.
        started: Monotonic seconds.
    """

    request: Request
    question: str
    kept: bytes | None
    encoder: DualEncoder
    data: SiteData
    shared: SharedAdapter
    started: float


@dataclass(frozen=True)
class Trained:
    """A trained adapter, and the validation loss of what it started from, in nats."""

    adapter: TrainedAdapter
    loss_before: float | None


def alike(works: Sequence[Work]) -> list[list[int]]:
    """Return which works can be carried out together: one kind, one encoder, one job."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, work in enumerate(works):
        request = work.request
        key = (request.kind, request.round, id(work.encoder), request.job.digest())
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def train_together(works: Sequence[Work]) -> list[Trained | Exception]:
    """Train every work's factors; each is validated first under the adapter that it received.

    Returns:
        Per work what came of it; one that fails does not keep the others from training.
    """
    results: list[Trained | Exception | None] = [None] * len(works)
    ready: list[tuple[int, float | None]] = []
    for number, work in enumerate(works):
        try:
            ready.append((number, _loss_before(work)))
        except Exception as error:
            results[number] = error
    if ready:
        tasks = [_task(works[number]) for number, _ in ready]
        first = works[ready[0][0]]
        found = train_shared(first.encoder, tasks, first.request.job)
        for (number, before), trained in zip(ready, found, strict=True):
            if isinstance(trained, TrainingError):
                results[number] = trained
            else:
                results[number] = Trained(trained, before)
    return [result for result in results if result is not None]


def personalize_together(works: Sequence[Work]) -> list[Personalized | Exception]:
    """Fit every work's personal adapter; as ``train_together``."""
    tasks = [PersonalTask(work.data, work.shared, work.request.seed) for work in works]
    return list(personalize(works[0].encoder, tasks, works[0].request.job))


def _loss_before(work: Work) -> float | None:
    if not set(work.request.weights) & set(work.data.towers) or not work.request.factors:
        raise TrainingError("no-training-data", "no tower to train in this round")
    return validation_loss(
        work.encoder, work.data, AdapterView(shared=work.shared), work.request.job
    )


def _task(work: Work) -> SiteTask:
    request = work.request
    return SiteTask(work.data, work.shared, request.factors, request.seed, request.round)
