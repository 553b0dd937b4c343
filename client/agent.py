"""What a site does with one request: policy, data, work, release.

The agent never trusts a request. It decodes it against the schema, asks the site's policy,
and answers every failure with a reason code and a fixed sentence; the text of an error stays
at the site, because it may quote a record. The answer depends on the request and the site's
data only, and a training that was answered is not done twice.
"""

import logging
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from client.audit import AuditLog, on_disk_together
from client.data.load import load_site
from client.data.records import SiteData
from client.evaluation import evaluate_site
from client.features import check_common
from client.own_factor import OwnFactor, of_kinds
from client.personalization import Personalized
from client.policy import SitePolicy
from client.proxy import ProxySet, load_proxy
from client.received import check_fits, join_received, receive_parts
from client.refusals import place_of, reason_of
from client.release import (
    Answer,
    change_of,
    release_again,
    release_description,
    release_done,
    release_evaluation,
    release_features,
    release_needs,
    release_refusal,
    release_update,
)
from client.settings import SiteSettings
from client.state import SiteState, StoredPersonal
from client.training import fresh_adapter
from client.work import (
    Trained,
    Validated,
    Work,
    alike,
    personalize_together,
    train_together,
    validate_together,
)
from shared.adapter import (
    TOWERS,
    AdapterLayout,
    Array,
    SharedAdapter,
    Tower,
)
from shared.config import JobConfig
from shared.errors import (
    RefusedError,
    RunDirectoryError,
    StorageError,
)
from shared.layout_file import load_adapter
from shared.messages import (
    Description,
    Part,
    Request,
    TrainSummary,
    decode_request,
    question_of,
)
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.ranks import leading
from shared.results import Model
from shared.seeding import derive_seed
from shared.tensors import Tensors

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class _MissingPartsError(Exception):
    """A part of the shared adapter neither came with the request nor is held."""


def load_records(settings: SiteSettings, encoder: DualEncoder) -> SiteData:
    """Load a site's records with their pictures as an encoder takes them."""
    return load_site(settings.source, encoder.to_pixels, settings.pixels, encoder.preprocessing)


class NotReleasedError(StorageError):
    """Sites could not note their answers in their audit logs; nothing of them leaves.

    Attributes:
        answers: In the order in which the agents were asked: their answers, or why there is none.
    """

    def __init__(self, answers: Sequence[bytes | StorageError]) -> None:
        super().__init__(next(str(each) for each in answers if isinstance(each, StorageError)))
        self.answers = list(answers)


class SiteAgent:
    """One site: holds its data and encoder, and answers one request at a time.

    Args:
        settings: What the site owns.
        policy: What it will do at all.
        encoder: Loads the encoder that a job names; several simulated sites may share one.
        records: Loads the site's records.
        proxy: Loads the public pairs, for jobs whose sites exchange features of them.
    """

    def __init__(
        self,
        settings: SiteSettings,
        policy: SitePolicy,
        encoder: Callable[[JobConfig], DualEncoder],
        records: Callable[[SiteSettings, DualEncoder], SiteData] = load_records,
        proxy: Callable[[SiteSettings, DualEncoder], ProxySet] = load_proxy,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._load_encoder = encoder
        self._load_records = records
        self._load_proxy = proxy
        self._state = SiteState(settings.state, settings.held)
        self._audit = AuditLog(self._state.audit)
        self._held: dict[Part, str] = {}
        self._encoder: tuple[str, DualEncoder] | None = None
        self._data: tuple[str, SiteData] | None = None
        self._proxy: tuple[str, ProxySet] | None = None
        self.lock = threading.Lock()

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request, whatever the request says.

        Raises:
            NotReleasedError: If not even a refusal can be noted in the audit log.
        """
        return answer_together([(self, body)])[0]

    def begin(self, body: bytes) -> Work | bytes:
        """Read a request, ask the policy, and get ready what it needs; or refuse."""
        started = time.monotonic()
        request: Request | None = None
        try:
            request, tensors = decode_request(body)
            self._check(request)
            encoder, data = self._open(request)
            proxy = self._public(request, encoder)
            shared = SharedAdapter({})
            own: Mapping[str, Array] = {}
            if request.kind != "describe":
                shared = self._receive(request, tensors, encoder)
                if proxy is not None:
                    check_common(shared.features, len(proxy))
                own = self._own(request, encoder)
        except _MissingPartsError:
            return release_needs(self._reply(request, started), self._audit)
        except Exception as error:
            return self._refuse(request, started, error)
        question = question_of(body)
        kept = self._state.answer(question)
        return Work(request, question, kept, encoder, data, shared, started, own, proxy)

    def finish(self, work: Work, result: object = None, together: int = 1) -> bytes:
        """Release what came of a work.

        Args:
            work: What ``begin`` returned.
            result: What came of it, or the error that did; ``None`` to describe the site.
            together: Sites whose work was done at once; its time is shared among them.
        """
        reply = self._reply(work.request, work.started, together)
        if isinstance(result, Exception):
            return self._refuse(work.request, work.started, result)
        try:
            if isinstance(result, Trained):
                return self._release_training(work, result, reply)
            if isinstance(result, Personalized):
                personal = StoredPersonal(result.adapter, result.alpha)
                self._state.save_personal(work.shared.sha256(), personal)
                return release_done(reply, self._audit)
            if isinstance(result, Validated):
                return self._evaluate(work, result)
            return self._describe(work, reply)
        except Exception as error:
            return self._refuse(work.request, work.started, error)

    def answer_again(self, work: Work) -> bytes:
        """Give the kept answer once more."""
        return release_again(work.request, work.kept or b"", self._audit)

    def refuse(self, request: Request, reason: str) -> bytes:
        """Refuse a request without looking at it further; a task under way is not waited for.

        Raises:
            StorageError: If the audit log cannot be written; then nothing leaves.
        """
        log.warning("request refused: %s", reason)
        return release_refusal(Answer(self._settings.name, request), reason, self._audit)

    def _refuse(self, request: Request | None, started: float, error: Exception) -> bytes:
        reason = reason_of(error)
        return release_refusal(self._reply(request, started), reason, self._audit)

    def _check(self, request: Request) -> None:
        if request.site not in {"", self._settings.name}:
            raise RefusedError("other-site", "the request is for another site")
        if not request.site and request.kind != "describe":
            raise RefusedError("other-site", "the request does not say which site it is for")
        self._policy.check(request)

    def _open(self, request: Request) -> tuple[DualEncoder, SiteData]:
        """Return encoder and data, loaded at the first request that needs them."""
        job = request.job.at(self._settings.name)
        key = f"{job.model!r} {job.lora!r}"
        if self._encoder is None or self._encoder[0] != key:
            self._encoder = (key, self._load_encoder(job))
        encoder = self._encoder[1]
        if not self._policy.allows_base(encoder.base_sha256):
            raise RefusedError("policy-base", "this base is not on the site's list")
        if job is request.job and encoder.base_sha256 != request.base_sha256:
            raise RefusedError("base-mismatch", "the site's base has another digest")
        if self._data is None or self._data[0] != encoder.base_sha256:
            self._data = (encoder.base_sha256, self._load_records(self._settings, encoder))
        return encoder, self._data[1]

    def _public(self, request: Request, encoder: DualEncoder) -> ProxySet | None:
        """Return the public pairs if the job exchanges features of them, and they are the job's."""
        if not request.job.aggregate.shares_features:
            return None
        if self._proxy is None or self._proxy[0] != encoder.base_sha256:
            self._proxy = (encoder.base_sha256, self._load_proxy(self._settings, encoder))
        proxy = self._proxy[1]
        if proxy.sha256 != request.job.proxy.sha256:
            raise RefusedError("proxy-mismatch", "the site's public set has another digest")
        return proxy

    def _receive(self, request: Request, tensors: Tensors, encoder: DualEncoder) -> SharedAdapter:
        parts, missing = receive_parts(request, tensors, self._state)
        self._held.update({part: request.parts[part] for part in parts if part in request.parts})
        if missing:
            raise _MissingPartsError
        return join_received(request, parts, encoder.layout)

    def _own(self, request: Request, encoder: DualEncoder) -> Mapping[str, Array]:
        """Return the factors that the site kept from the rounds before; mostly none."""
        if not request.job.aggregate.private_factors:
            return {}
        # The round of a training is not over; that of a closing phase is.
        last = request.round - (request.kind == "train")
        own = OwnFactor(self._state.folder, request).after(last)
        if own or request.kind != "train" or not request.job.aggregate.shares_features:
            return own
        # Nobody sends it one to begin with; it begins where it would alone.
        seed = derive_seed(request.job.seed, "local", self._settings.name)
        return fresh_adapter(encoder.layout, seed).factors

    def _describe(self, work: Work, reply: Answer) -> bytes:
        examples = {tower: work.data.examples(tower) for tower in TOWERS}
        description = Description(kind=work.data.kind, examples=examples)
        return release_description(reply, description, self._policy, self._audit)

    def _release_training(self, work: Work, trained: Trained, reply: Answer) -> bytes:
        adapter, request = trained.adapter, work.request
        private = request.job.aggregate.private_factors
        summary = TrainSummary(
            loss=adapter.loss,
            validation_loss=trained.loss_before,
            gradient_norms=dict(adapter.gradient_norms),
            discrepancy=dict(adapter.discrepancy),
            steps=adapter.steps,
        )
        if trained.features is not None:
            answer = release_features(reply, trained.features, summary, self._policy, self._audit)
        else:
            rank = request.job.lora.rank_of(request.site)
            sent = leading(of_kinds(adapter.factors, request.factors), rank)
            change = change_of(sent, leading(work.shared.factors, rank))
            layout = work.encoder.layout.at_rank(rank)
            answer = release_update(reply, change, layout, summary, self._policy, self._audit)
        if private:
            own = {**work.own, **of_kinds(adapter.factors, private)}
            OwnFactor(self._state.folder, request).keep(request.round, own)
        self._state.keep_answer(work.question, answer)
        return answer

    def _evaluate(self, work: Work, validated: Validated) -> bytes:
        started = time.monotonic()
        request, encoder, data, shared = work.request, work.encoder, work.data, work.shared
        stored = self._state.load_personal(shared.sha256())
        views: dict[Model, AdapterView] = {"base": AdapterView()}
        views |= self._references(encoder.layout)
        if shared.factors:
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
        reply = self._reply(request, started)
        return release_evaluation(reply, evaluation, validated.loss, policy, self._audit)

    def _references(self, layout: AdapterLayout) -> dict[Model, AdapterView]:
        """Return the further adapters to score; files that are not there are left out."""
        views: dict[Model, AdapterView] = {}
        for model, path in self._settings.references.items():
            if path.exists():
                reference = _load_reference(path)
                check_fits(layout, reference)
                views[model] = AdapterView(shared=reference)
        return views

    def _reply(self, request: Request | None, started: float, together: int = 1) -> Answer:
        return Answer(
            site=self._settings.name,
            request=request,
            holds=dict(self._held),
            seconds=(time.monotonic() - started) / together,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


def answer_together(asked: Sequence[tuple[SiteAgent, bytes]]) -> list[bytes]:
    """Return the answers of agents in this process; those that train, train in one cohort.

    A deployed agent is a cohort of one. What an agent answers is, beyond rounding, what it
    would answer alone. Who is in a cohort depends on ``asked`` only, so that a repeated
    question gets the very same bits: kept answers are used if all of a cohort were kept.

    Args:
        asked: Agents with a request each; every agent once.

    Raises:
        NotReleasedError: If not even a refusal can be noted in the audit logs of some; it holds
            the answers of the others.
        StorageError: If the disk fails while all wait for it; then nothing leaves.
    """
    with on_disk_together(), ExitStack() as locks:
        for agent, _ in asked:
            locks.enter_context(agent.lock)
        begun = [_noted(partial(agent.begin, body)) for agent, body in asked]
        answers = [b"" if isinstance(begin, Work) else begin for begin in begun]
        numbers = [number for number, begin in enumerate(begun) if isinstance(begin, Work)]
        works = [begin for begin in begun if isinstance(begin, Work)]
        for group in alike(works):
            agents = [asked[numbers[number]][0] for number in group]
            found = _answer_group(agents, [works[number] for number in group])
            for number, answer in zip(group, found, strict=True):
                answers[numbers[number]] = answer
    released = [answer for answer in answers if isinstance(answer, bytes)]
    if len(released) < len(answers):
        raise NotReleasedError(answers)
    return released


def _noted(step: Callable[[], Result]) -> Result | StorageError:
    """Return what a step gives, or why its site could not write its audit log."""
    try:
        return step()
    except StorageError as error:
        failed = error
    except OSError as error:
        failed = StorageError(f"the audit log cannot be used: {error.strerror}")
        failed.__cause__ = error
    # Only the place is logged, as for a refusal.
    log.error("nothing released: storage at %s", place_of(failed))
    return failed


def _answer_group(agents: Sequence[SiteAgent], works: Sequence[Work]) -> list[bytes | StorageError]:
    """Answer works of one kind and job."""
    if all(work.kept is not None for work in works):
        return [
            _noted(partial(agent.answer_again, work))
            for agent, work in zip(agents, works, strict=True)
        ]
    results: Sequence[object] = [None] * len(works)
    try:
        if works[0].request.kind == "train":
            results = train_together(works)
        elif works[0].request.kind == "personalize":
            results = personalize_together(works)
        elif works[0].request.kind == "evaluate":
            results = validate_together(works)
    except Exception as error:
        if len(works) > 1:  # whatever one site's records do, the others answer
            pairs = zip(agents, works, strict=True)
            return [_answer_group([agent], [work])[0] for agent, work in pairs]
        results = [error]
    together = len(works) if any(result is not None for result in results) else 1
    return [
        _noted(partial(agent.finish, work, result, together))
        for agent, work, result in zip(agents, works, results, strict=True)
    ]


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
