"""What a site does with one request: policy, data, work, release.

The agent never trusts a request. It decodes it against the schema, asks the site's policy,
and answers every failure with a reason code and a fixed sentence; the text of an error stays
at the site, because it may quote a record. The answer depends on the request and the site's
data only, and a training that was answered is not done twice.
"""

import hashlib
import logging
import resource
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.audit import AuditLog
from client.data.load import load_site
from client.data.records import SiteData
from client.evaluation import evaluate_site
from client.personalization import personalize
from client.policy import SitePolicy
from client.received import EMPTY, check_fits, receive_parts
from client.release import (
    Answer,
    release_again,
    release_description,
    release_done,
    release_evaluation,
    release_needs,
    release_refusal,
    release_update,
)
from client.settings import SiteSettings
from client.state import SiteState, StoredPersonal
from client.training import SiteTask, train_shared, validation_loss
from shared.adapter import (
    TOWERS,
    AdapterLayout,
    SharedAdapter,
    Tower,
)
from shared.config import JobConfig
from shared.errors import (
    AdapterMismatchError,
    BaseModelError,
    DataError,
    RefusedError,
    RunDirectoryError,
    StorageError,
    TrainingError,
    WireError,
)
from shared.layout_file import load_adapter
from shared.messages import (
    Description,
    Part,
    Request,
    RequestKind,
    Tensors,
    TrainSummary,
    decode_request,
    join_parts,
)
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.results import Model

log = logging.getLogger(__name__)

_OURS = Path(__file__).parents[1]

# The reason code that stands for a sort of error; the error's own text stays at the site.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (WireError, "wire"),
    (DataError, "data"),
    (BaseModelError, "base"),
    (AdapterMismatchError, "adapter-mismatch"),
    (StorageError, "storage"),
    (MemoryError, "out-of-memory"),
)


class _MissingPartsError(Exception):
    """A part of the shared adapter neither came with the request nor is held."""


@dataclass(frozen=True)
class _Work:
    """One request that the policy allows, and what is needed to answer it."""

    request: Request
    tensors: Tensors
    encoder: DualEncoder
    data: SiteData
    started: float


class SiteAgent:
    """One site: holds its data and encoder, and answers one request at a time.

    Args:
        settings: What the site owns.
        policy: What it will do at all.
        encoder: Loads the encoder that a job names; several simulated sites may share one.
    """

    def __init__(
        self,
        settings: SiteSettings,
        policy: SitePolicy,
        encoder: Callable[[JobConfig], DualEncoder],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._load_encoder = encoder
        self._state = SiteState(settings.state)
        self._audit = AuditLog(self._state.audit)
        self._lock = threading.Lock()
        self._held: dict[Part, str] = {}
        self._encoder: tuple[str, DualEncoder] | None = None
        self._data: tuple[str, SiteData] | None = None
        self._answer_to: dict[RequestKind, Callable[[_Work], bytes]] = {
            "describe": self._describe,
            "train": self._train,
            "personalize": self._personalize,
            "evaluate": self._evaluate,
        }

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request, whatever the request says.

        Raises:
            StorageError: If not even a refusal can be noted in the audit log; then nothing
                leaves.
        """
        with self._lock:
            started = time.monotonic()
            request: Request | None = None
            try:
                request, tensors = decode_request(body)
                self._check(request)
                question = hashlib.sha256(body).hexdigest()
                known = self._state.answer(question)
                if known is not None:
                    return release_again(request, known, self._audit)
                encoder, data = self._open(request)
                work = _Work(request, tensors, encoder, data, started)
                answer = self._answer_to[request.kind](work)
                if request.kind == "train":
                    self._state.keep_answer(question, answer)
            except _MissingPartsError:
                return release_needs(self._reply(request, started), self._audit)
            except Exception as error:
                reason = _reason_of(error)
                return release_refusal(self._reply(request, started), reason, self._audit)
            else:
                return answer

    def _check(self, request: Request) -> None:
        if request.site not in {"", self._settings.name}:
            raise RefusedError("other-site", "the request is for another site")
        if not request.site and request.kind != "describe":
            raise RefusedError("other-site", "the request does not say which site it is for")
        self._policy.check(request)

    def _open(self, request: Request) -> tuple[DualEncoder, SiteData]:
        """Return encoder and data, loaded at the first request that needs them."""
        job = request.job
        key = f"{job.model!r} {job.lora!r} {job.personalize.rank}"
        if self._encoder is None or self._encoder[0] != key:
            self._encoder = (key, self._load_encoder(job))
        encoder = self._encoder[1]
        if encoder.base_sha256 != request.base_sha256:
            raise RefusedError("base-mismatch", "the site's base has another digest")
        if self._data is None or self._data[0] != encoder.base_sha256:
            data = load_site(self._settings.source, encoder.to_pixels)
            self._data = (encoder.base_sha256, data)
        return encoder, self._data[1]

    def _describe(self, work: _Work) -> bytes:
        examples = {tower: work.data.examples(tower) for tower in TOWERS}
        description = Description(kind=work.data.kind, examples=examples)
        answer = self._reply(work.request, work.started)
        return release_description(answer, description, self._policy, self._audit)

    def _train(self, work: _Work) -> bytes:
        request, encoder, data = work.request, work.encoder, work.data
        shared = self._receive(work)
        if not set(request.weights) & set(data.towers) or not request.factors:
            raise TrainingError("no-training-data", "no tower to train in this round")
        loss_before = validation_loss(encoder, data, AdapterView(shared=shared), request.job)
        task = SiteTask(data, shared, request.factors, request.seed, request.round)
        (trained,) = train_shared(encoder, [task], request.job)
        change = {name: array - shared.factors[name] for name, array in trained.factors.items()}
        summary = TrainSummary(
            loss=trained.loss,
            validation_loss=loss_before,
            gradient_norms=dict(trained.gradient_norms),
            steps=trained.steps,
        )
        answer = self._reply(request, work.started)
        return release_update(answer, change, encoder.layout, summary, self._policy, self._audit)

    def _personalize(self, work: _Work) -> bytes:
        shared = self._receive(work)
        fitted = personalize(work.encoder, work.data, shared, work.request.job, work.request.seed)
        personal = StoredPersonal(fitted.adapter, fitted.alpha)
        self._state.save_personal(shared.sha256(), personal)
        return release_done(self._reply(work.request, work.started), self._audit)

    def _evaluate(self, work: _Work) -> bytes:
        request, encoder, data = work.request, work.encoder, work.data
        shared = self._receive(work)
        stored = self._state.load_personal(shared.sha256())
        views: dict[Model, AdapterView] = {"base": AdapterView()}
        views |= self._references(encoder.layout)
        views["shared"] = AdapterView(shared=shared)
        if stored is not None and request.job.personalize.method != "none":
            views["personal"] = AdapterView(shared, stored.adapter, stored.alpha)
        job, least = (
            request.job,
            max(request.job.evaluate.minimum_count, self._policy.minimum_count),
        )
        policy = self._policy.model_copy(update={"minimum_count": least})  # the stricter wins
        in_use = towers_in_use(data.towers, stored.alpha if stored else {})
        evaluation = evaluate_site(encoder, data, views, job, in_use, request.seed)
        final_loss = validation_loss(encoder, data, views["shared"], job)
        answer = self._reply(request, work.started)
        return release_evaluation(answer, evaluation, final_loss, policy, self._audit)

    def _references(self, layout: AdapterLayout) -> dict[Model, AdapterView]:
        """Return the further adapters to score; files that are not there are left out."""
        views: dict[Model, AdapterView] = {}
        for model, path in self._settings.references.items():
            if path.exists():
                reference = _load_reference(path)
                check_fits(layout, reference)
                views[model] = AdapterView(shared=reference)
        return views

    def _receive(self, work: _Work) -> SharedAdapter:
        parts, missing = receive_parts(work.request, work.tensors, self._state)
        self._held.update({part: work.request.parts.get(part, EMPTY) for part in parts})
        if missing:
            raise _MissingPartsError
        shared = join_parts(parts, work.request.folds)
        check_fits(work.encoder.layout, shared)
        return shared

    def _reply(self, request: Request | None, started: float) -> Answer:
        return Answer(
            site=self._settings.name,
            request=request,
            holds=dict(self._held),
            seconds=time.monotonic() - started,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


def towers_in_use(
    trained: tuple[Tower, ...], alpha: Mapping[Tower, float]
) -> dict[Tower, Literal["personal", "shared", "not trained"]]:
    """Return which adapter each tower of a site uses.

    Args:
        trained: Towers that the site has records for.
        alpha: Mixing weight of the personal adapter per tower.
    """
    use: dict[Tower, Literal["personal", "shared", "not trained"]] = {}
    for tower in TOWERS:
        if tower not in trained:
            use[tower] = "not trained"
        else:
            use[tower] = "personal" if alpha.get(tower, 0.0) > 0 else "shared"
    return use


def _load_reference(path: Path) -> SharedAdapter:
    try:
        return load_adapter(path)
    except RunDirectoryError as error:
        raise StorageError(str(error)) from error


def _reason_of(error: Exception) -> str:
    """Return the code for an error, and note at the site where it came from.

    Only its type and place are logged: the text of an error may quote a record.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_OURS)]
    places = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno}" for f in (*own[-1:], frames[-1]))
    where = " in ".join(reversed(places))
    if isinstance(error, RefusedError | TrainingError):
        log.warning("request refused: %s at %s", error.reason, where)
        return error.reason
    for sort, reason in _REASONS:
        if isinstance(error, sort):
            log.warning("request refused: %s (%s at %s)", reason, type(error).__name__, where)
            return reason
    if type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        log.error("request refused: out-of-memory at %s", where)
        return "out-of-memory"
    log.error("request refused: internal (%s at %s)", type(error).__name__, where)
    return "internal"
