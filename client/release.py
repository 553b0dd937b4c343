"""The only door out of a site.

Whatever leaves is one of six things: a change of the shared adapter (clipped, weighted, in
fixed point), features of the public set where the site's policy allows it, released counts,
released measures, "done", or a refusal with a fixed sentence.
Every body gets its line in the audit log before it is handed over; if the line cannot be
written, the body does not leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from client.audit import AuditLog
from client.disclosure import disclosed, disclosed_count, rounded
from client.policy import SitePolicy
from client.secure_sum import SECURE_REFUSALS
from shared import fixedpoint
from shared.adapter import Adapter, AdapterLayout, Array, Tower, check_compatible, factor_of
from shared.errors import RefusedError, TrainingError, WireError
from shared.latest import Latest
from shared.messages import (
    Description,
    Reply,
    Request,
    TrainSummary,
    decode_reply,
    encode,
    stage_tensors,
)
from shared.parts import Part
from shared.privacy.clipping import clip
from shared.results import SiteEvaluation
from shared.tensors import Form, Packed, Tensors, form_of, side_by_side

REFUSALS: dict[str, str] = {
    "wire": "the request does not follow the protocol",
    "other-site": "the request is for another site",
    "request-unsigned": "the request does not carry the coordinator's signature",
    "request-signature": "the request's signature is not that of the site's coordinator",
    "request-protocol": "the request's signature belongs to another version of the protocol",
    "request-run": "the request's signature belongs to another run",
    "request-round": "the request's signature belongs to another round",
    "request-attempt": "the request's signature belongs to another attempt",
    "request-site": "the request's signature belongs to a request for another site",
    "request-base": "the request's signature belongs to another base",
    "request-job": "the request's signature belongs to another job",
    "request-body": "the request is not the one that was signed",
    "request-stale": "the site was asked this before, and something newer since",
    "job-digest": "the job is not the one that its digest names",
    "policy-request": "the site's policy does not allow this kind of request",
    "policy-base": "the site's policy does not allow this base",
    "policy-rounds": "the site's policy does not allow so many rounds",
    "policy-steps": "the site's policy does not allow so much training",
    "policy-unreadable": "the site's policy cannot be read, so it allows nothing",
    "policy-purpose": "the site's policy names no purpose, so it allows nothing",
    "policy-expired": "the site's policy does not count any more",
    "policy-coordinator": "the site's policy does not allow requests of this coordinator",
    "policy-rule": "the site's policy does not allow this aggregation rule",
    "policy-personalization": "the site's policy does not allow this personalization",
    "policy-targets": "the site's policy does not allow an adapter of these layers",
    "policy-proxy": "the site's policy does not allow distillation on a public set",
    "policy-cohort": "the site's policy asks for more sites in a round",
    "policy-patients": "the site has fewer patients than its policy asks for",
    "consent-withdrawn": "the site withdrew its consent",
    "data-changed": "the site's records changed within the run",
    "policy-rank": "the site's policy does not allow an adapter of this rank",
    "policy-adapter": "the adapter replaces more of the base than the site's policy allows",
    "policy-features": "the site's policy does not allow sending features of its own model",
    "no-proxy": "the site has no public set",
    "proxy-mismatch": "the site's public set is not the one that the job names",
    "policy-differential-privacy": "the site's policy requires differential privacy",
    "policy-secure-aggregation": "the site's policy requires secure aggregation",
    "base": "the base cannot be loaded at the site",
    "base-mismatch": "the site's base has another digest",
    "adapter-mismatch": "the shared adapter does not fit the site's base",
    "data": "the site's data cannot be used; its operator sees why",
    "no-training-data": "the site has no training records for this round",
    "embedding-not-finite": "a feature of the encoder was not a finite number",
    "too-few-records": "the site has too few training records for a step",
    "loss-not-finite": "the loss of the training was not a finite number",
    "change-not-finite": "the change of the adapter was not finite",
    "out-of-range": "the change does not fit the round's fixed point",
    "abandoned": "the request was given up before it was answered",
    "version": "the request is of another version of consilia",
    "out-of-memory": "the site has too little memory for this round",
    "device-lost": "the device that trains at the site stopped working",
    "private-factor": "the request asks for a factor that stays at the site",
    "no-projection": "the base has no projections that a site could keep to itself",
    "privacy-plan": "the job's differential privacy would not hold; the site's operator sees why",
    "privacy-budget": "the site's privacy budget would be passed",
    "privacy-ledger": "the site's privacy ledger cannot be relied on",
    "privacy-population": "the site's records do not belong to its privacy ledger",
    "storage": "the site could not write to its own disk",
    "internal": "the site met an error of its own; its operator sees where",
    **SECURE_REFUSALS,
}
"""The sentences that may leave a site, by reason code."""

_OTHER = "the site cannot contribute to this request"

_received: Latest[Packed] = Latest()
"""The factors that a round starts from, side by side; the same for all sites of a process."""


@dataclass(frozen=True)
class Answer:
    """Whose reply it is, to which request, and what the work took.

    Attributes:
        site: Name of the site.
        request: The request; ``None`` if it could not be read.
        holds: Parts of the shared adapter that the site now holds.
        seconds: Wall seconds of the work.
        peak_memory_bytes: Peak resident memory of the site's process.
    """

    site: str
    request: Request | None
    holds: Mapping[Part, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def reply(self) -> Reply:
        """Return the reply without a body, bound to its request."""
        request = self.request
        return Reply(
            kind=request.kind if request else "describe",
            run=request.run if request else "",
            round=request.round if request else 0,
            attempt=request.attempt if request else 1,
            site=self.site,
            holds=dict(self.holds),
            seconds=round(self.seconds, 3),
            peak_memory_bytes=self.peak_memory_bytes,
        )


def change_of(trained: Adapter, start: Adapter) -> Adapter:
    """Return trained minus received factors, side by side.

    Args:
        trained: The factors that the site trained, float32.
        start: What it received; sites that received the same pass the same object.
    """
    form = form_of(trained)
    numbers = np.concatenate(
        [trained[place.name] for place in form.places] or [np.empty(0, np.float32)],
        axis=None,
        dtype=np.float32,
    )
    received = _received.get(
        (start, form),
        lambda: side_by_side({place.name: start[place.name] for place in form.places}),
    )
    numbers -= received.numbers(np.float32)
    return cast("Adapter", Packed(form, numbers))


def release_update(answer: Answer, update: "EncodedUpdate", audit: AuditLog) -> bytes:
    """Release what a round of training changed, as it is.

    Raises:
        RefusedError: ``secure-session`` if the job is one of secure aggregation.
    """
    if _known(answer).job.privacy.secure_aggregation:
        raise RefusedError("secure-session", SECURE_REFUSALS["secure-session"])
    return _out(update.reply(answer), update.steps, "update", audit)


@dataclass(frozen=True)
class EncodedUpdate:
    """What a round of training changed: clipped, weighted and in fixed point.

    Attributes:
        steps: The change, uint32 by factor.
        weights: Of the towers in it.
        scale: Steps per unit.
        summary: Released numbers.
    """

    steps: Tensors
    weights: Mapping[Tower, int]
    scale: float
    summary: TrainSummary

    def reply(self, answer: Answer) -> Reply:
        """Return the reply that says all of it but the steps."""
        said = {"weights": dict(self.weights), "scale": self.scale, "summary": self.summary}
        return answer.reply().model_copy(update=said)

    def kept(self, answer: Answer) -> bytes:
        """Return what the site keeps of it; it never leaves."""
        return encode(self.reply(answer), self.steps)

    @classmethod
    def of_kept(cls, content: bytes) -> "EncodedUpdate":
        """Return what ``kept`` wrote.

        Raises:
            WireError: If it is something else.
        """
        reply, steps = decode_reply(content)
        summary = reply.summary or TrainSummary()
        return cls(steps, reply.weights, reply.scale, summary)


def encode_update(
    answer: Answer,
    change: Adapter,
    layout: AdapterLayout,
    summary: TrainSummary,
    policy: SitePolicy,
) -> EncodedUpdate:
    """Make what a round of training changed ready to leave: clip, weight, fixed point.

    Args:
        answer: Whose reply it is.
        change: Trained minus received factors, for the towers that the site trained. Towers
            to which the request gives no weight are left out.
        layout: Of the site's own encoder.
        summary: Released numbers; ``clipped`` is filled in here.
        policy: The site's limits; the stricter of its norm and the job's holds.

    Raises:
        TrainingError: If the change is not finite or does not fit the fixed point, or has a
            factor that the job leaves to the sites: such a change never leaves, in no part.
    """
    request = _known(answer)
    private = request.job.aggregate.private_factors
    if any(factor_of(name) in private for name in change):
        raise TrainingError("private-factor", REFUSALS["private-factor"])
    weights = dict(request.weights)
    if not policy.exact:
        summary = rounded(summary)
    tower_of = layout.towers
    if not all(tower_of[name] in weights for name in change):
        change = {name: array for name, array in change.items() if tower_of[name] in weights}
    _check_fits(layout, form_of(change))
    norm = min(request.job.aggregate.clip_norm, policy.max_change)
    clipped_change, clipped = clip(change, norm)
    towers = {tower_of[name] for name in clipped_change}
    try:
        steps = fixedpoint.encode(
            clipped_change, lambda name: weights[tower_of[name]], request.scale
        )
    except WireError as error:
        raise TrainingError("out-of-range", REFUSALS["out-of-range"]) from error
    return EncodedUpdate(
        steps,
        {tower: weights[tower] for tower in weights if tower in towers},
        request.scale,
        # What noise for whole sites hides is not told beside it.
        summary.model_copy(update={"clipped": clipped and not request.job.privacy.for_sites}),
    )


def noised_update(
    answer: Answer,
    steps: Mapping[str, NDArray[np.uint32]],
    layout: AdapterLayout,
    summary: TrainSummary,
) -> EncodedUpdate:
    """Make a noised sum of gradients ready for the sum of all sites; it leaves in no other way.

    Args:
        answer: Whose reply it is.
        steps: By factor, in fixed point with the site's share of the noise.
        layout: Of the site's own encoder.
        summary: With the patients that the site's steps are taken to have.

    Raises:
        TrainingError: ``wire`` for a tower that is not asked for, or weighed other than 1: a
            weight would multiply the noise of one site, and what its patients may change.
    """
    request = _known(answer)
    towers = {layout.tower_of(name) for name in steps}
    if any(request.weights.get(tower) != 1 for tower in towers):
        raise TrainingError("wire", REFUSALS["wire"])
    _check_fits(layout, form_of(steps))
    said = TrainSummary(expected=summary.expected)
    return EncodedUpdate(steps, dict.fromkeys(sorted(towers), 1), request.scale, said)


def release_stage(answer: Answer, message: bytes, audit: AuditLog) -> bytes:
    """Release the site's message of a stage of secure aggregation, and nothing beside it.

    Args:
        answer: Whose reply it is.
        message: Keys, sealed shares, the masked change, a signature, or shares.
        audit: Gets the line for this body.
    """
    kind = _known(answer).kind
    what = "masked update" if kind == "train" else kind
    reply = answer.reply().model_copy(update={"scale": _known(answer).scale})
    return _out(reply, stage_tensors(message), what, audit)


def release_features(
    answer: Answer,
    features: Mapping[Tower, Array],
    summary: TrainSummary,
    policy: SitePolicy,
    audit: AuditLog,
) -> bytes:
    """Release what the site's model makes of the public set, in place of a change of an adapter.

    Args:
        answer: Whose reply it is.
        features: (N, d) by tower; brought to length one, which bounds each, and to float16.
        summary: Released numbers.
        policy: Must allow features.
        audit: Gets the line for this body.

    Raises:
        RefusedError: ``policy-features``.
        TrainingError: ``embedding-not-finite``, or ``wire`` for a tower without a weight.
    """
    request = _known(answer)
    if not policy.features:
        raise RefusedError("policy-features", REFUSALS["policy-features"])
    if not set(features) <= set(request.weights):
        raise TrainingError("wire", REFUSALS["wire"])
    sent: dict[str, NDArray[np.float16]] = {}
    for tower, values in features.items():
        length = np.linalg.norm(values, axis=1, keepdims=True)
        if not np.isfinite(values).all() or not (length > 0).all():
            raise TrainingError("embedding-not-finite", REFUSALS["embedding-not-finite"])
        sent[tower] = (values / length).astype(np.float16)
    reply = answer.reply().model_copy(
        update={
            "weights": {tower: request.weights[tower] for tower in features},
            "scale": request.scale,
            "summary": summary if policy.exact else rounded(summary),
        }
    )
    return _out(reply, sent, "features", audit)


@lru_cache(maxsize=8)
def _check_fits(layout: AdapterLayout, form: Form) -> None:
    """Raise unless a change has the layout's shapes; looked at once for all of one form."""
    blank = Packed(form, np.empty(form.size // 4, np.float32))
    check_compatible(layout, blank, blank)


def release_description(
    answer: Answer, description: Description, policy: SitePolicy, audit: AuditLog
) -> bytes:
    """Release the site's kind and its counts per tower."""
    examples = {t: disclosed_count(n, policy) for t, n in description.examples.items()}
    released = description.model_copy(update={"examples": examples})
    return _out(
        answer.reply().model_copy(update={"description": released}), {}, "description", audit
    )


def release_evaluation(
    answer: Answer,
    evaluation: SiteEvaluation,
    final_loss: float | None,
    policy: SitePolicy,
    audit: AuditLog,
) -> bytes:
    """Release the measures that the policy allows.

    Args:
        answer: Whose reply it is.
        evaluation: What the site measured.
        final_loss: Validation loss of the finished shared adapter, nats; ``None`` if it was
            not measured.
        policy: What may be told.
        audit: Gets the line for this body.
    """
    update: dict[str, object] = {"evaluation": disclosed(evaluation, policy)}
    if final_loss is not None:
        summary = TrainSummary(loss=final_loss, validation_loss=final_loss)
        update["summary"] = summary if policy.exact else rounded(summary)
    return _out(answer.reply().model_copy(update=update), {}, "evaluation", audit)


def release_done(answer: Answer, audit: AuditLog) -> bytes:
    """Release that the work was done, and nothing of what came out of it."""
    return _out(answer.reply(), {}, "done", audit)


def release_needs(answer: Answer, audit: AuditLog) -> bytes:
    """Say that parts of the shared adapter must be sent again."""
    return _out(answer.reply().model_copy(update={"status": "needs"}), {}, "needs", audit)


def release_refusal(
    answer: Answer,
    reason: str,
    audit: AuditLog,
    objections: Mapping[str, Sequence[str]] | None = None,
) -> bytes:
    """Refuse with a reason code and the fixed sentence that belongs to it.

    A code that is not in ``REFUSALS`` gets a general sentence: the text of an error may
    quote a record, and never leaves.

    Args:
        answer: Whose reply it is.
        reason: Code; the first one if there are several.
        audit: Gets the line for this body.
        objections: By code, what of the job is not allowed.
    """
    code = reason if reason in REFUSALS else "internal"
    fields = {each: tuple(names) for each, names in (objections or {}).items() if each in REFUSALS}
    update = {
        "status": "refused",
        "reason": code,
        "detail": REFUSALS.get(reason, _OTHER),
        "objections": fields,
    }
    reply = answer.reply().model_copy(update=update)
    return _out(reply, {}, f"refusal {code}", audit, {"objections": fields} if fields else None)


def release_again(request: Request, body: bytes, audit: AuditLog) -> bytes:
    """Give an earlier answer once more; it gets a line in the audit log of its own."""
    audit.append(run=request.run, round_number=request.round, what="again", body=body)
    return body


def _out(
    reply: Reply,
    tensors: Tensors,
    what: str,
    audit: AuditLog,
    detail: Mapping[str, object] | None = None,
) -> bytes:
    body = encode(reply.model_copy(update={"anchor": audit.head()}), tensors)
    audit.append(run=reply.run, round_number=reply.round, what=what, body=body, detail=detail)
    return body


def _known(answer: Answer) -> Request:
    if answer.request is None:
        raise TrainingError("wire", REFUSALS["wire"])
    return answer.request
