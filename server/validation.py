"""The gate: a reply that is not exactly what was asked for never reaches an aggregator.

The checks come in the order of their cost: size, envelope, binding to the question, names,
types and shapes, range, weights, metrics. The first failure gives a reason code; the site is
left out of the round and the round goes on. That a question is answered once at most is
seen to by ``server.exchange`` and, behind it, by a unique constraint of the run history.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shared.adapter import TOWERS, AdapterLayout, AdapterUpdate, Factor, Tower
from shared.errors import VersionError, WireError
from shared.fixedpoint import largest_entry
from shared.messages import Reply, RequestKind, TrainSummary, decode_reply, stage_message
from shared.results import SiteEvaluation
from shared.tensors import Form, Packed
from shared.versions import OTHER_VERSION

TOO_LARGE: Final = "too-large"
PROTOCOL_BROKEN: Final = "protocol"
WRONG_KIND: Final = "wrong-kind"
WRONG_RUN: Final = "wrong-run"
WRONG_ROUND: Final = "wrong-round"
WRONG_ATTEMPT: Final = "wrong-attempt"
WRONG_SITE: Final = "wrong-site"
DUPLICATE: Final = "duplicate"
CONFLICTING: Final = "conflicting-answers"
NEEDS_AGAIN: Final = "needs-again"
NO_CONTENT: Final = "no-content"
TENSOR_NAMES: Final = "tensor-names"
TENSOR_DTYPE: Final = "tensor-dtype"
TENSOR_SHAPE: Final = "tensor-shape"
OUT_OF_RANGE: Final = "out-of-range"
TOO_LONG: Final = "norm-too-large"
WRONG_WEIGHTS: Final = "wrong-weights"
WRONG_SCALE: Final = "wrong-scale"
METRICS: Final = "metrics"
SITE_NAME: Final = "site-name"
UNNAMED: Final = "unnamed"
NOT_FINITE: Final = "not-finite"
NOT_UNIT: Final = "not-length-one"

_SLACK = 1.25
_LENGTH_SLACK = 0.01
"""Of a vector of length one in float16, whatever its width."""
_CLEARLY = 0.9
_HEADER_BYTES = 256 * 1024
"""Room for a reply's header; an evaluation with many findings is the longest."""
_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


_Wanted = Mapping[str, tuple[Tower, tuple[int, int]]]


class _Run(NamedTuple):
    """Numbers of one tower that lie side by side."""

    tower: Tower
    start: int
    end: int

    @property
    def span(self) -> slice:
        return slice(self.start, self.end)


@dataclass(frozen=True)
class Expected:
    """What a reply must answer to.

    Attributes:
        kind: Of the request.
        run: Name of the run.
        round: Number of the round.
        attempt: Which attempt at the round.
        site: Who was asked; ``None`` where names are not known yet (``describe``).
        weights: The weights that the site was given (``train``).
        scale: The fixed-point scale that the site was given.
        factors: The factors that the site was to train.
        layout: Which layers carry an adapter.
        clip_norm: The largest norm of a change.
        features: Where sites exchange features, items and width of each tower's; then no factor
            may come back.
        private: Whether the job has differential privacy, with which no loss is told.
        message_bytes: Within secure aggregation, the most bytes that the site's message has; then
            nothing may come beside it.
    """

    kind: RequestKind
    run: str
    round: int
    attempt: int
    site: str | None
    weights: Mapping[Tower, int] = field(default_factory=dict)
    scale: float = 1.0
    factors: tuple[Factor, ...] = ()
    layout: AdapterLayout | None = None
    clip_norm: float = 1.0
    features: tuple[int, int] | None = None
    private: bool = False
    message_bytes: int = 0

    def wanted(self) -> _Wanted:
        """Return tower and shape of the arrays that the reply must hold, by name."""
        if self.features is not None and self.kind == "train":
            return {tower: (tower, self.features) for tower in TOWERS if tower in self.weights}
        if self.layout is None or self.kind != "train":
            return {}
        return _wanted(self.layout, self.factors, frozenset(self.weights))


@dataclass(frozen=True)
class Admitted:
    """A reply that passed; ``update`` only for ``train``, ``message`` in secure aggregation."""

    reply: Reply
    update: AdapterUpdate | None = None
    message: bytes = b""


@dataclass(frozen=True)
class Rejected:
    """A reply that did not pass.

    Attributes:
        reason: One of the codes of this module, or the site's own code if it refused.
        reply: The reply, as far as it could be read and belongs to the question.
        needs: Whether the site only asks for the missing parts of the shared adapter.
        working: Whether the site only says that it needs longer.
        detail: What belongs to the reason and may be shown.
    """

    reason: str
    reply: Reply | None = None
    needs: bool = False
    working: bool = False
    detail: tuple[str, ...] = ()


def judge(body: bytes, expected: Expected) -> Admitted | Rejected:
    """Check a reply from its first byte to its last number.

    Args:
        body: As it came.
        expected: What was asked.
    """
    if len(body) > largest_body(expected):
        return Rejected(TOO_LARGE)
    try:
        reply, tensors = decode_reply(body)
    except VersionError as error:
        return Rejected(OTHER_VERSION, detail=(str(error),))
    except WireError:
        return Rejected(PROTOCOL_BROKEN)
    reason = _binding(reply, expected)
    if reason:
        return Rejected(reason)
    return admit(reply, tensors, expected) if reply.status == "ok" else _not_yet(reply)


def _not_yet(reply: Reply) -> Rejected:
    """Return what a reply says that does not answer the question."""
    if reply.status == "refused":
        found = tuple(f"{code}: {', '.join(names)}" for code, names in reply.objections.items())
        return Rejected(reason_code(reply.reason), reply, detail=found)
    needs = reply.status == "needs"
    return Rejected(reply.status, reply, needs=needs, working=not needs)


def admit(reply: Reply, tensors: Packed, expected: Expected) -> Admitted | Rejected:
    """Check the content of a reply that belongs to its question and says ``ok``."""
    check = _stage if expected.message_bytes else _content
    reason = check(reply, tensors, expected)
    if reason:
        return Rejected(reason, reply)
    if expected.message_bytes:
        message = stage_message(tensors)
        return Admitted(reply, message=b"" if message is None else message.tobytes())
    if expected.kind != "train":
        return Admitted(reply)
    update = AdapterUpdate(
        site=reply.site,
        weights=dict(expected.weights),
        delta=_unsigned(tensors),
        scale=expected.scale,
        metrics=_metrics(reply.summary),
    )
    if expected.features is not None:
        update = replace(update, delta={}, features=_halves(tensors))
    return Admitted(reply, update)


def largest_body(expected: Expected) -> int:
    """Return the largest size in bytes that a reply may have."""
    if expected.message_bytes:
        return expected.message_bytes + _HEADER_BYTES
    wanted = expected.wanted()
    content = sum(4 * outputs * inputs for _, (outputs, inputs) in wanted.values())
    return int(_SLACK * (content + 200 * len(wanted))) + _HEADER_BYTES


@lru_cache(maxsize=8)
def _wanted(
    layout: AdapterLayout, factors: tuple[Factor, ...], towers: frozenset[Tower]
) -> _Wanted:
    """Return what is expected of every site with these towers; see ``Expected.wanted``."""
    names = [name for name in layout.names(factors) if layout.towers[name] in towers]
    return {name: (layout.towers[name], layout.shapes[name]) for name in names}


def reason_code(reason: str | None) -> str:
    """Return a site's own reason code if it is one; free text never reaches a record."""
    return reason if reason is not None and _CODE.fullmatch(reason) else UNNAMED


def _binding(reply: Reply, expected: Expected) -> str | None:
    pairs = (
        (WRONG_KIND, reply.kind, expected.kind),
        (WRONG_RUN, reply.run, expected.run),
        (WRONG_ROUND, reply.round, expected.round),
        (WRONG_ATTEMPT, reply.attempt, expected.attempt),
        (WRONG_SITE, reply.site, reply.site if expected.site is None else expected.site),
    )
    return next((reason for reason, got, wanted in pairs if got != wanted), None)


def _content(reply: Reply, tensors: Packed, expected: Expected) -> str | None:
    if expected.kind == "train":
        bad = _tensors(tensors, expected) or _assigned(reply, expected)
        return bad or _summary(reply, expected)
    if tensors:
        return TENSOR_NAMES
    if expected.kind == "describe":
        if not reply.site.isprintable() or reply.site != reply.site.strip():
            return SITE_NAME  # a name is written to logs and tables
        return None if reply.description else NO_CONTENT
    if expected.kind == "evaluate":
        return _evaluation(reply.evaluation)
    return None


def _stage(reply: Reply, tensors: Packed, expected: Expected) -> str | None:
    """Check the envelope of a message of secure aggregation, and that nothing is beside it."""
    message = stage_message(tensors)
    if message is None:
        return TENSOR_NAMES
    if message.dtype != np.uint8:
        return TENSOR_DTYPE
    if message.ndim != 1 or not 0 < message.size <= expected.message_bytes:
        return TENSOR_SHAPE
    told = (reply.summary, reply.description, reply.evaluation, reply.weights or None)
    if any(each is not None for each in told):
        return PROTOCOL_BROKEN
    return None if reply.scale == expected.scale else WRONG_SCALE


def _tensors(tensors: Packed, expected: Expected) -> str | None:
    if expected.features is not None:
        return _features(tensors, expected.wanted())
    runs = _runs(tensors.form, expected.layout, expected.factors, frozenset(expected.weights))
    return runs if isinstance(runs, str) else _numbers_of(tensors, runs, expected)


def _features(tensors: Packed, wanted: _Wanted) -> str | None:
    """Check the features of the public items: of the towers asked for, finite, of length one."""
    if tensors.form.by_name.keys() != wanted.keys():
        return TENSOR_NAMES
    for name, dtype, shape, *_ in tensors.form.places:
        if dtype != np.float16:
            return TENSOR_DTYPE
        if shape != wanted[name][1]:
            return TENSOR_SHAPE
    for values in _halves(tensors).values():
        lengths = np.linalg.norm(values.astype(np.float32), axis=1)
        if not np.isfinite(lengths).all():
            return NOT_FINITE
        if np.abs(lengths - 1.0).max(initial=0.0) > _LENGTH_SLACK:
            return NOT_UNIT
    return None


@lru_cache(maxsize=16)
def _runs(
    found: Form,
    layout: AdapterLayout | None,
    factors: tuple[Factor, ...],
    towers: frozenset[Tower],
) -> tuple[_Run, ...] | str:
    """Return which numbers belong to which tower, or why the arrays are not those asked for.

    Sites with the same towers answer in the same form, which is looked at once.
    """
    wanted = _wanted(layout, factors, towers) if layout else {}
    if layout is None or found.by_name.keys() != wanted.keys():
        return TENSOR_NAMES
    for name, dtype, shape, *_ in found.places:
        if dtype != np.uint32:
            return TENSOR_DTYPE
        if shape != wanted[name][1]:
            return TENSOR_SHAPE
    runs, start = [], 0
    for tower, places in itertools.groupby(found.places, lambda place: wanted[place.name][0]):
        end = start + sum(place.entries for place in places)
        runs.append(_Run(tower, start, end))
        start = end
    return tuple(runs)


def _numbers_of(tensors: Packed, runs: tuple[_Run, ...], expected: Expected) -> str | None:
    """Check range and norm of all numbers; each tower has its own weight."""
    numbers = tensors.numbers(np.int32)
    units = {tower: 1 / (w * expected.scale) for tower, w in expected.weights.items()}
    rough = sum(_square(numbers[run.span], np.float32) * units[run.tower] ** 2 for run in runs)
    if math.sqrt(rough) <= expected.clip_norm * _CLEARLY:
        return None  # and no entry is larger than the norm
    squares = rounding = 0.0
    for run in runs:
        steps, unit = numbers[run.span], units[run.tower]
        largest = largest_entry(expected.weights[run.tower], expected.clip_norm, expected.scale)
        if steps.size and max(int(steps.max()), -int(steps.min())) > largest:
            return OUT_OF_RANGE
        squares += _square(steps, np.float64) * unit**2
        rounding += steps.size * (unit / 2) ** 2
    limit = expected.clip_norm * (1 + 1e-6) + math.sqrt(rounding)
    return TOO_LONG if math.sqrt(squares) > limit else None


def _square(steps: NDArray[np.int32], precision: type[np.floating[Any]]) -> float:
    """Return the sum of squares; in single precision to a percent."""
    values = steps.astype(precision)
    return float(values @ values)


def _assigned(reply: Reply, expected: Expected) -> str | None:
    if dict(reply.weights) != dict(expected.weights):
        return WRONG_WEIGHTS
    return None if reply.scale == expected.scale else WRONG_SCALE


def _metrics(summary: TrainSummary | None) -> dict[str, float]:
    return {} if summary is None or summary.loss is None else {"loss": summary.loss}


def _summary(reply: Reply, expected: Expected) -> str | None:
    if reply.summary is None:
        return NO_CONTENT
    if (reply.summary.loss is None) != expected.private:
        return PROTOCOL_BROKEN
    ratios = list(reply.summary.discrepancy.values())
    losses = (reply.summary.loss, reply.summary.validation_loss)
    numbers = [*reply.summary.gradient_norms.values(), *ratios]
    numbers += [loss for loss in losses if loss is not None]
    bad = not all(math.isfinite(number) for number in numbers)
    negative = min([*reply.summary.gradient_norms.values(), *ratios], default=0.0) < 0
    return METRICS if bad or negative or reply.summary.steps < 0 else None


def _evaluation(evaluation: SiteEvaluation | None) -> str | None:
    if evaluation is None:
        return NO_CONTENT
    return None if all(math.isfinite(x) for x in _numbers(evaluation.model_dump())) else METRICS


def _numbers(content: object) -> Iterator[float]:
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from _numbers(item)
    elif isinstance(content, float):
        yield content


def _halves(tensors: Packed) -> Mapping[Tower, NDArray[np.float16]]:
    """Return features by tower; names and types were checked."""
    return cast("Mapping[Tower, NDArray[np.float16]]", tensors)


def _unsigned(tensors: Packed) -> Mapping[str, NDArray[np.uint32]]:
    return cast("Mapping[str, NDArray[np.uint32]]", tensors)  # their types were checked
