"""What travels between coordinator and site: a JSON header and named tensors, as bytes.

A body is ``b"CONS" + version byte + header length (8 bytes, little endian) + JSON header`` with
spaces up to a multiple of 8 bytes, and then its enclosure: of a reply ``safetensors``
(``shared.tensors``), of a request ``job length (8 bytes) + JSON job + safetensors``. Nothing is
executed and nothing is unpickled; unknown fields are refused. Flower carries the body unseen
(``shared.wire``), and so does the agent's socket.

The requests of a round differ by their headers only. Their enclosure is made once, is in memory
once, and is read once by a process that answers for many sites.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.adapter import (
    Factor,
    Tower,
)
from shared.config import JobConfig
from shared.errors import VersionError, WireError
from shared.parts import Part
from shared.results import Kind, SiteEvaluation
from shared.tensors import Packed, Tensors, pack_tensors, unpack_tensors
from shared.versions import (
    MINOR,
    OTHER_VERSION,
    PROTOCOL,
    VERSION_PATTERN,
    difference,
    program_version,
    stated_difference,
)

_NAME = b"CONS"
_MAGIC = _NAME + bytes([PROTOCOL])
_LENGTH = 8
_ALIGNED = 8
"""What comes after a header begins at a multiple of this, as arrays of numbers should."""

TaskKind = Literal["describe", "train", "personalize", "evaluate"]
SecureKind = Literal["secure-keys", "secure-shares", "secure-agree", "secure-unmask"]
SECURE_KINDS: tuple[SecureKind, ...] = get_args(SecureKind)
"""The stages of secure aggregation; the one that masks the change is ``train`` itself."""
RequestKind = TaskKind | SecureKind
_ENCLOSED = {"job"}
"""Fields of a request that are not in its header."""
_OF_A_SESSION = {"secure", "stage"}
"""Fields that only requests within secure aggregation have."""
_BESIDE_THE_QUESTION = {*_ENCLOSED, *_OF_A_SESSION, "attempt", "cohort", "minor", "program"}
"""Fields of a request that do not change what it asks for."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
FieldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,62}$")]
SiteName = Annotated[str, Field(min_length=1, max_length=200)]


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Versioned(_Header):
    """A header that says whose it is; see ``shared.versions``."""

    protocol: Literal[3] = PROTOCOL
    minor: Annotated[int, Field(ge=0)] = MINOR
    program: Annotated[str, Field(pattern=VERSION_PATTERN)] = Field(default_factory=program_version)


class RequestHeader(_Versioned):
    """What a request says beside its job; see ``Request``."""

    kind: RequestKind
    run: Annotated[str, Field(min_length=1, max_length=200)]
    round: Annotated[int, Field(ge=0)] = 0
    attempt: Annotated[int, Field(ge=1)] = 1
    cohort: Annotated[int, Field(ge=0)] = 0
    site: Annotated[str, Field(max_length=200)] = ""
    base_sha256: Sha256
    job_sha256: Sha256
    factors: tuple[Factor, ...] = ()
    weights: dict[Tower, Annotated[int, Field(ge=1, le=65535)]] = {}
    scale: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    folds: Annotated[int, Field(ge=0)] = 0
    parts: dict[Part, Sha256] = {}
    secure: Sha256 | None = None
    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")] = ""

    @property
    def stage_message(self) -> bytes:
        """The question of the stage of secure aggregation that the request is.

        Raises:
            WireError: If it is not written as it should be.
        """
        try:
            return base64.b64decode(self.stage, validate=True)
        except binascii.Error:
            raise WireError("request: stage: expected base64") from None


class Request(RequestHeader):
    """What the coordinator asks of a site.

    The shared adapter travels in parts, ``A``, ``B`` and ``residual``, and what stands for it in
    an exchange of features as ``features``; a part that the site confirmed to hold (same digest)
    is not sent again.

    Attributes:
        run: The run's own name; Flower's run id is a vehicle.
        round: 1-based; 0 for ``describe``; the last committed round for the closing phases.
        attempt: Counts repeats of a round after a resume.
        cohort: How many sites are asked in this round (``train``).
        site: Whom the request is for; empty in ``describe``, where names are not yet known.
        job: The whole job, which travels in the enclosure; its digest is ``job_sha256``.
        factors: Which factors the site trains (``train``).
        weights: Integer weight per tower that the site must multiply its change with.
        scale: Fixed-point steps per unit; a power of two.
        seed: The round's seed for this site.
        folds: The shared adapter's number of folds.
        parts: Digest of every part of the shared adapter.
        secure: Digest of the session of secure aggregation that the request belongs to.
        stage: The question of this stage of it, base64. In the header and not in the enclosure:
            it is a site's own, and the enclosure is everybody's.
    """

    job: JobConfig


class Anchor(_Header):
    """A line of a site's audit log that the coordinator keeps, so that nobody can rewrite it.

    Attributes:
        seq: Its number, from 1.
        sha256: Digest of the line, which holds that of the line before it.
    """

    seq: Annotated[int, Field(ge=1)]
    sha256: Sha256


class Description(_Header):
    """What a site says of itself: its kind and released counts per tower."""

    kind: Kind
    examples: dict[Tower, Annotated[int, Field(ge=0)]]


class TrainSummary(_Header):
    """Released numbers of one round of training; of losses and norms none, with privacy."""

    loss: float | None = None
    validation_loss: float | None = None
    """Of the received shared adapter, before training; nats."""
    gradient_norms: dict[Tower, float] = {}
    discrepancy: dict[Tower, float] = {}
    """Gradient norm of a tower over the other one's, geometric mean over the steps; above 1 the
    tower runs ahead. Empty unless the site trained both."""
    clipped: bool = False
    steps: int = 0
    expected: int | None = None
    """Patients that a step of the site is taken to have; where sites give noised sums, through
    secure aggregation only."""


class Reply(_Versioned):
    """A site's answer; exactly one of the bodies, or ``refused`` with a reason code.

    Attributes:
        status: ``ok``; ``refused`` by policy or because the site cannot contribute;
            ``needs`` if a part of the shared adapter is missing at the site; ``working`` if the
            site needs longer and is to be asked again.
        reason: Code such as ``loss-not-finite`` or ``policy-base``.
        detail: One sentence that may leave the site.
        objections: By reason code, the fields of the job or request that the site does not allow.
        anchor: The last line of the site's audit log before that of this reply.
        holds: Digests of the parts that the site now holds.
        seconds: Wall seconds of the work itself, so far if it is ``working``.
        progress: Share of the work that is done, from 0 to 1, if it is ``working`` and knows.
        peak_memory_bytes: Peak resident memory of the site's process.
    """

    kind: RequestKind
    run: str
    round: int
    attempt: int
    site: SiteName
    status: Literal["ok", "refused", "needs", "working"] = "ok"
    reason: str | None = None
    detail: str = ""
    objections: Annotated[dict[Code, tuple[FieldName, ...]], Field(max_length=32)] = {}
    anchor: Anchor | None = None
    holds: dict[Part, Sha256] = {}
    weights: dict[Tower, int] = {}
    scale: float = 1.0
    description: Description | None = None
    summary: TrainSummary | None = None
    evaluation: SiteEvaluation | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    peak_memory_bytes: Annotated[int, Field(ge=0)] = 0


def encode(header: Request | Reply, tensors: Tensors | None = None) -> bytes:
    """Return the body for a header and its tensors."""
    if isinstance(header, Request):
        return encode_header(header) + enclose(header.job, tensors or {})
    return pack_tensors(tensors or {}, before=encode_header(header))


def encode_header(header: Request | Reply) -> bytes:
    """Return the beginning of a body, up to its enclosure; a request's job is not in it."""
    left_out = _ENCLOSED
    if isinstance(header, RequestHeader) and header.secure is None:
        left_out = _ENCLOSED | _OF_A_SESSION  # sites of the minor version before can read it
    text = header.model_dump_json(exclude=left_out).encode()
    text += b" " * (-(len(_MAGIC) + _LENGTH + len(text)) % _ALIGNED)
    return _MAGIC + len(text).to_bytes(_LENGTH, "little") + text


def enclose(job: JobConfig, tensors: Tensors) -> bytes:
    """Return the end of a request's body, which many requests can share."""
    text = job.model_dump_json().encode()
    text += b" " * (-len(text) % _ALIGNED)
    return pack_tensors(tensors, before=len(text).to_bytes(_LENGTH, "little") + text)


def decode_request(body: bytes) -> tuple[Request, Packed]:
    """Return header and tensors of a request.

    Requests with the same enclosure have the same job and tensors, the very objects, as long
    as no other enclosure comes in between; neither may be changed.

    Raises:
        WireError: If the body does not follow the protocol.
        VersionError: If that is because it is another version's.
    """
    text, start = _header_of(body)
    try:
        header = RequestHeader.model_validate_json(text)
        enclosure = _opened(body, start)
    except ValidationError as error:
        raise _unreadable("request", text, error) from None
    # Both halves are validated; putting them together adds nothing to check.
    fields = header.model_fields_set | _ENCLOSED
    request = Request.model_construct(fields, **dict(header), job=enclosure.job)
    return request, enclosure.tensors


def decode_reply(body: bytes) -> tuple[Reply, Packed]:
    """Return header and tensors of a reply.

    Raises:
        WireError: If the body does not follow the protocol.
        VersionError: If that is because it is another version's, or because the site says that
            the request was.
    """
    text, start = _header_of(body)
    try:
        reply, tensors = Reply.model_validate_json(text), unpack_tensors(body, start)
    except ValidationError as error:
        raise _unreadable("reply", text, error) from None
    if reply.reason == OTHER_VERSION:
        raise VersionError(difference(reply.program, reply.protocol, reply.minor))
    return reply, tensors


def decode_request_header(body: bytes) -> RequestHeader:
    """Return a request's header; its enclosure need not be there.

    Raises:
        WireError: If it does not follow the protocol.
        VersionError: If that is because it is another version's.
    """
    text, _ = _header_of(body)
    try:
        return RequestHeader.model_validate_json(text)
    except ValidationError as error:
        raise _unreadable("request", text, error) from None


def question_of(request: RequestHeader) -> str:
    """Return what tells a question from others: the sha256 of what its header asks for.

    The header names the digests of the job and of the adapter's parts, so it is the same
    question whichever parts come with it. Another attempt at a round asks for the same, too: it
    costs the site no second training, and no second release.
    """
    left_out = _BESIDE_THE_QUESTION
    if request.kind in SECURE_KINDS:  # a stage is asked by what its session has come to
        left_out = left_out - _OF_A_SESSION
    text = request.model_dump_json(exclude=left_out)
    return hashlib.sha256(text.encode()).hexdigest()


def with_attempt(reply: bytes, attempt: int) -> bytes:
    """Return a reply as the answer to another attempt at its round; its numbers are the same.

    Raises:
        WireError: If it is no reply.
    """
    header, rest = decode_reply(reply)[0], halves(reply)[1]
    return encode_header(header.model_copy(update={"attempt": attempt})) + rest


def halves(body: bytes) -> tuple[bytes, bytes]:
    """Return a body's header, as ``encode_header`` gives it, and its enclosure.

    Raises:
        WireError: If the body has no header.
    """
    _, end = _header_of(body)
    return body[:end], body[end:]


_STAGE_MESSAGE: Final = "message"
"""Name of the only tensor of a reply within secure aggregation."""


def stage_tensors(message: bytes) -> Tensors:
    """Return the tensors of a reply that is a site's message of a stage, (bytes,) of uint8."""
    return {_STAGE_MESSAGE: np.frombuffer(message, np.uint8)}


def stage_message(tensors: Tensors) -> NDArray[np.generic] | None:
    """Return the array that ``stage_tensors`` made; ``None`` if it is missing or not alone.

    Its type and shape are not checked.
    """
    return tensors[_STAGE_MESSAGE] if tensors.keys() == {_STAGE_MESSAGE} else None


@dataclass(frozen=True)
class _Enclosure:
    """What came with a request, as bytes and read."""

    content: bytes
    job: JobConfig
    tensors: Packed


class _Opened:
    """Remembers the enclosure that was read last; the next request has the same, mostly."""

    latest: _Enclosure | None = None


def _opened(body: bytes, start: int) -> _Enclosure:
    """Return the enclosure that begins at ``start``."""
    latest = _Opened.latest
    if latest and len(body) == start + len(latest.content) and body.endswith(latest.content):
        return latest
    content = body[start:]
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if end > len(content):
        raise WireError("body: shorter than its job says")
    job = JobConfig.model_validate_json(content[_LENGTH:end])
    _Opened.latest = _Enclosure(content, job, unpack_tensors(content[end:]))
    return _Opened.latest


def _header_of(body: bytes) -> tuple[bytes, int]:
    """Return a body's header and where its enclosure begins."""
    start = len(_MAGIC) + _LENGTH
    if len(body) < start or not body.startswith(_NAME):
        raise WireError(f"body: expected a message of protocol {PROTOCOL}, got {len(body)} bytes")
    end = start + int.from_bytes(body[len(_MAGIC) : start], "little")
    if end > len(body):
        raise WireError("body: shorter than its header says")
    protocol = body[len(_NAME)]
    if protocol != PROTOCOL:
        other = stated_difference(body[start:end], protocol)
        if other is not None:
            raise VersionError(other)
        raise WireError(f"body: expected protocol {PROTOCOL}, got {protocol}")
    return body[start:end], end


def _unreadable(what: str, header: bytes, error: ValidationError) -> WireError:
    """Return why a header cannot be read: its version, if it is another one's."""
    other = stated_difference(header, PROTOCOL)
    return WireError(f"{what}: {_brief(error)}") if other is None else VersionError(other)


def _brief(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
