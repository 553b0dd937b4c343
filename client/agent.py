"""What a site does with one request: policy, data, work, release.

The agent never trusts a request. It decodes it against the schema, asks what the site permits
(``client.permission``) before the work and again before anything leaves, and answers every
failure with a reason code and a fixed sentence; the text of an error stays at the site, because
it may quote a record. The answer depends on the request and the site's data only, and a training
that was answered is not done twice.
"""

import logging
import resource
import threading
import time
from collections.abc import Callable, Mapping

from client.adapter_size import check_size
from client.audit import AuditLog
from client.data.load import load_site
from client.data.records import SiteData
from client.data_changes import table_digest
from client.decisions import NOBODY, Party
from client.evaluation import evaluate_site
from client.features import check_common
from client.models_in_use import towers_in_use, views_of
from client.own_factor import OwnFactor, of_kinds
from client.patient_privacy import PatientPrivacy, promises_privacy
from client.permission import Permission
from client.personalization import Personalized
from client.policy import PolicySource, SitePolicy
from client.proxy import ProxySet, load_proxy
from client.received import join_received, receive_parts
from client.refusals import reason_of
from client.release import (
    Answer,
    EncodedUpdate,
    change_of,
    encode_update,
    noised_update,
    release_again,
    release_description,
    release_done,
    release_evaluation,
    release_features,
    release_needs,
    release_refusal,
    release_stage,
    release_update,
)
from client.secure_rounds import SecureStages
from client.secure_sum import SecureSums
from client.settings import SiteSettings
from client.state import SiteState, StoredPersonal
from client.together import answer_together
from client.training import fresh_adapter
from client.work import Trained, Validated, Work
from shared.adapter import TOWERS, Adapter, Array, SharedAdapter
from shared.config import JobConfig
from shared.errors import RefusedError, WireError
from shared.latest import Latest
from shared.messages import (
    SECURE_KINDS,
    Description,
    Request,
    TrainSummary,
    decode_request,
    question_of,
    with_attempt,
)
from shared.model.encoder import DualEncoder
from shared.parts import Part
from shared.ranks import leading
from shared.seeding import derive_seed
from shared.tensors import Tensors

log = logging.getLogger(__name__)


class _MissingPartsError(Exception):
    """A part of the shared adapter neither came with the request nor is held."""


def load_records(settings: SiteSettings, encoder: DualEncoder) -> SiteData:
    """Load a site's records with their pictures as an encoder takes them."""
    return load_site(settings.source, encoder.to_pixels, settings.pixels, encoder.preprocessing)


class SiteAgent:
    """One site: holds its data and encoder, and answers one request at a time.

    Args:
        settings: What the site owns.
        policy: What it will do at all; a file of it is read again when it has changed.
        encoder: Loads the encoder that a job names; several simulated sites may share one.
        records: Loads the site's records.
        proxy: Loads the public pairs, for jobs whose sites have them.
        party: Who asks.
        sums: What the site does in secure sums; without it, it takes part in none.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - everything that a site consists of
        self,
        settings: SiteSettings,
        policy: PolicySource,
        encoder: Callable[[JobConfig], DualEncoder],
        records: Callable[[SiteSettings, DualEncoder], SiteData] = load_records,
        proxy: Callable[[SiteSettings, DualEncoder], ProxySet] = load_proxy,
        party: Party = NOBODY,
        sums: SecureSums | None = None,
    ) -> None:
        self._settings = settings
        self._load_encoder = encoder
        self._load_records = records
        self._load_proxy = proxy
        self._state = SiteState(settings.state, settings.held, settings.keeping)
        self._audit = AuditLog(self._state.audit)
        self._permission = Permission(settings.name, policy, settings.state, self._audit, party)
        self._privacy = PatientPrivacy(settings.state, self._audit, settings.keeping)
        self._secure = SecureStages(sums)
        self._held: dict[Part, str] = {}
        self._encoder: tuple[str, DualEncoder] | None = None
        self._data: tuple[tuple[str, str], SiteData] | None = None
        self._proxy: tuple[str, ProxySet] | None = None
        self._table: Latest[str] = Latest()
        self.lock = threading.Lock()

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request, whatever the request says.

        Raises:
            NotReleasedError: If not even a refusal can be noted in the audit log.
        """
        return answer_together([(self, body)])[0]

    def begin(self, body: bytes) -> Work | bytes:
        """Read a request, ask whether it is permitted, and get ready what it needs; or refuse."""
        started = time.monotonic()
        request: Request | None = None
        try:
            request, tensors = decode_request(body)
            policy = self._permission.check(request)
            if request.kind in SECURE_KINDS:
                return self._answer_stage(request, policy, started)
            encoder, data = self._open(request, policy)
            if request.secure is not None:
                self._secure.confirm(request, encoder.layout)  # before anything is trained
            proxy = self._public(request, encoder)
            shared = SharedAdapter({})
            own: Mapping[str, Array] = {}
            if request.kind != "describe":
                shared = self._receive(request, tensors, encoder)
                if proxy is not None and request.job.aggregate.shares_features:
                    check_common(shared.features, len(proxy))
                else:
                    check_size(shared, encoder.layout, encoder.frozen_norms, policy.max_adapter)
                own = self._own(request, encoder)
            self._permission.approve(policy, request)
            question = question_of(request)
            kept = self._state.answer(question)
            promise = None
            if kept is not None and request.secure is None:
                kept = with_attempt(kept, request.attempt)
            elif kept is None and proxy is not None and promises_privacy(request):
                promise = self._privacy.promise(request, policy, data, encoder.layout, proxy)
        except _MissingPartsError:
            return release_needs(self._reply(request, started), self._audit)
        except Exception as error:
            return self._refuse(request, started, error)
        return Work(request, question, kept, encoder, data, shared, started, own, proxy, promise)

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
            policy = self._permission.check(work.request)  # hours may have passed
            if isinstance(result, Trained):
                return self._release_training(work, result, reply, policy)
            if isinstance(result, Personalized):
                personal = StoredPersonal(result.adapter, result.alpha)
                self._state.save_personal(work.shared.sha256(), personal, work.request.run)
                return release_done(reply, self._audit)
            if isinstance(result, Validated):
                return self._evaluate(work, result)
            return self._describe(work, reply, policy)
        except Exception as error:
            return self._refuse(work.request, work.started, error)

    def answer_again(self, work: Work) -> bytes:
        """Give the kept answer once more; in secure aggregation, what was kept under new masks."""
        if work.request.secure is None:
            return release_again(work.request, work.kept or b"", self._audit)
        try:
            self._permission.check(work.request)
            update = EncodedUpdate.of_kept(work.kept or b"")
            return self._masked(work, update, self._reply(work.request, work.started))
        except Exception as error:
            return self._refuse(work.request, work.started, error)

    def objection(self, body: bytes) -> bytes | None:
        """Return a refusal if a request is not permitted at this moment, or ``None``.

        A task under way is not waited for, so that whoever asks for its answer hears of it now.

        Raises:
            StorageError: If the audit log cannot be written; then nothing leaves.
        """
        started = time.monotonic()
        try:
            request, _ = decode_request(body)
        except WireError:
            return None  # the agent refuses it itself
        try:
            self._permission.check(request)
        except RefusedError as error:
            return self._refuse(request, started, error)
        return None

    def refuse(self, request: Request, reason: str) -> bytes:
        """Refuse a request without looking at it further; a task under way is not waited for.

        Raises:
            StorageError: If the audit log cannot be written; then nothing leaves.
        """
        log.warning("request refused: %s", reason)
        return release_refusal(Answer(self._settings.name, request), reason, self._audit)

    def _refuse(self, request: Request | None, started: float, error: Exception) -> bytes:
        reason = reason_of(error)
        fields = error.fields if isinstance(error, RefusedError) else None
        return release_refusal(self._reply(request, started), reason, self._audit, fields)

    def _open(self, request: Request, policy: SitePolicy) -> tuple[DualEncoder, SiteData]:
        """Return encoder and data; they are loaded at first, and when the table has changed."""
        job = request.job.at(self._settings.name)
        key = f"{job.model!r} {job.lora!r}"
        if self._encoder is None or self._encoder[0] != key:
            self._encoder = (key, self._load_encoder(job))
        encoder = self._encoder[1]
        self._permission.check_base(policy, encoder.base_sha256)
        if job is request.job and encoder.base_sha256 != request.base_sha256:
            raise RefusedError("base-mismatch", "the site's base has another digest")
        table = table_digest(self._settings.source.table, self._table)
        if self._data is None or self._data[0] != (encoder.base_sha256, table):
            loaded = self._load_records(self._settings, encoder)
            self._data = ((encoder.base_sha256, table), loaded)
        data = self._data[1]
        self._permission.check_data(policy, request, data, table)
        return encoder, data

    def _public(self, request: Request, encoder: DualEncoder) -> ProxySet | None:
        """Return the public pairs if the job's sites have them, and they are the job's."""
        if not request.job.sites_have_public_set:
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
        own = self._own_factor(request).after(last)
        if own or request.kind != "train" or not request.job.aggregate.shares_features:
            return own
        # Nobody sends it one to begin with; it begins where it would alone.
        seed = derive_seed(request.job.seed, "local", self._settings.name)
        return fresh_adapter(encoder.layout, seed).factors

    def _own_factor(self, request: Request) -> OwnFactor:
        return OwnFactor(self._state.folder, request, self._state.keeping)

    def _describe(self, work: Work, reply: Answer, policy: SitePolicy) -> bytes:
        if work.request.job.privacy.differential_privacy:
            policy = policy.model_copy(update={"exact": False})
        examples = {tower: work.data.examples(tower) for tower in TOWERS}
        description = Description(kind=work.data.kind, examples=examples)
        return release_description(reply, description, policy, self._audit)

    def _release_training(
        self, work: Work, trained: Trained, reply: Answer, policy: SitePolicy
    ) -> bytes:
        adapter, request = trained.adapter, work.request
        if work.promise is not None:
            self._privacy.spend(work.promise, adapter.steps)  # before anything of it leaves
        private = request.job.aggregate.private_factors
        summary = TrainSummary(steps=adapter.steps)
        if trained.noised is not None:
            summary = TrainSummary(expected=trained.noised.expected)
        elif not request.job.privacy.differential_privacy:  # they would leave without noise
            summary = TrainSummary(
                loss=adapter.loss,
                validation_loss=trained.loss_before,
                gradient_norms=dict(adapter.gradient_norms),
                discrepancy=dict(adapter.discrepancy),
                steps=adapter.steps,
            )
        if trained.features is not None:
            released = kept = release_features(
                reply, trained.features, summary, policy, self._audit
            )
        else:
            rank = request.job.lora.rank_of(request.site)
            layout = work.encoder.layout.at_rank(rank)
            sent: Adapter = of_kinds(adapter.factors, request.factors)
            start = work.shared.factors
            if rank < work.encoder.layout.rank:
                sent, start = leading(sent, rank), leading(start, rank)
            if trained.noised is None:
                update = encode_update(reply, change_of(sent, start), layout, summary, policy)
            else:
                update = noised_update(reply, trained.noised.steps, layout, summary)
            if request.secure is None:
                released = kept = release_update(reply, update, self._audit)
            else:
                # Kept as it is, so that another attempt masks the very same change.
                released, kept = b"", update.kept(reply)
        if private:
            own = {**work.own, **of_kinds(adapter.factors, private)}
            self._own_factor(request).keep(request.round, own)
        self._state.keep_answer(work.question, kept, request.run)
        return released or self._masked(work, EncodedUpdate.of_kept(kept), reply)

    def _masked(self, work: Work, update: EncodedUpdate, reply: Answer) -> bytes:
        message = self._secure.mask(work.request, update, work.encoder.layout)
        return release_stage(reply, message, self._audit)

    def _answer_stage(self, request: Request, policy: SitePolicy, started: float) -> bytes:
        """Answer a stage of secure aggregation, but the one that masks a change."""
        self._permission.approve(policy, request)
        message = self._secure.answer(request, lambda: self._open(request, policy)[0].layout)
        return release_stage(self._reply(request, started), message, self._audit)

    def _evaluate(self, work: Work, validated: Validated) -> bytes:
        started = time.monotonic()
        request, encoder, data, shared = work.request, work.encoder, work.data, work.shared
        stored = self._state.load_personal(shared.sha256())
        job, references = request.job, self._settings.references
        views = views_of(shared, stored, references, encoder.layout, job)
        in_use = towers_in_use(data.towers, stored.alpha if stored else {})
        evaluation = evaluate_site(encoder, data, views, job, in_use, request.seed)
        policy = self._permission.check(request)  # that took its time, too
        reply = self._reply(request, started)
        least = max(job.evaluate.minimum_count, policy.minimum_count)  # the stricter wins
        told = policy.model_copy(update={"minimum_count": least})
        said = self._privacy.said_of(request, policy)
        evaluation = evaluation.model_copy(update={"privacy": said})
        return release_evaluation(reply, evaluation, validated.loss, told, self._audit)

    def _reply(self, request: Request | None, started: float, together: int = 1) -> Answer:
        return Answer(
            site=self._settings.name,
            request=request,
            holds=dict(self._held),
            seconds=(time.monotonic() - started) / together,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
