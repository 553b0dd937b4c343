"""Gradient inversion of one patient's update: as it is, in a secure sum of three, and with noise.

A site is taken to send what one pair changes the factors by, which is the worst case: most of what
is sent is made of many. The attacker knows the base, the adapter that the sites received, and what
inputs have in common. What is recovered, see ``simulations.audit.inversion``: the input of the last
layer's MLP in each tower, and the tokens of the report.

The same gradients are attacked on their ways out: alone; in the sum that the real protocol of
secure aggregation lets the coordinator see, with two other sites of ordinary batches (weighed as
the job does, and all alike), and in the masked message itself; in the same sum as one of an
ordinary batch, which is what a site with many patients sends; and after one clipped and noised
step, with nobody else in it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.bank import open_bank
from client.batches import Batch, prepare
from client.data.records import SiteData
from client.patient_steps import PatientSteps, patients_of
from client.private_training import PatientGradients, noised_sums
from client.proxy import ProxySet
from client.training import SiteTask
from server.weights import integer_weights
from shared.adapter import TOWERS, SharedAdapter, Tower, factor_name
from shared.config import JobConfig
from shared.errors import InputError
from shared.fixedpoint import choose_scale, decode, encode
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.privacy.clipping import clip
from shared.security.secagg.coordinator import CoordinatorSum
from shared.security.secagg.messages import Masked
from shared.security.secagg.session import Participant, Session, least_threshold
from shared.security.secagg.site import SiteSum, Stage
from shared.security.signing import SigningKey
from simulations.audit.inversion import (
    Numbers,
    cosine,
    normed_input,
    pooled_direction,
    read_token,
    spanned,
)
from simulations.audit.results import Way

WAYS: tuple[Way, ...] = (
    "alone", "masked", "sum-of-three", "sum-of-equals", "sum-of-batches", "noised"
)  # fmt: skip

OTHERS = 2
"""Further sites in the secure sum."""

_VECTOR = "change"
_ZEROS = "0" * 64


@dataclass(frozen=True)
class Exposure:
    """What one way out gives away of one tower's side of single records.

    Attributes:
        way: Which way.
        tower: Whose inputs.
        cosine: Mean over records, of the recovered and the true input about the mean input.
        low: Lower end of its 95 % interval over records.
        high: Upper end.
        largest: Of the record that was recovered best.
        tokens: Share of the reports' tokens that were read; ``None`` for pictures.
        guessed: The share by saying at every position what most reports have there.
        records: How many were attacked, one at a time.
    """

    way: Way
    tower: Tower
    cosine: float
    low: float
    high: float
    largest: float
    tokens: float | None
    guessed: float | None
    records: int


class Victims:
    """A site's pairs, one of which at a time is all that an update is made of.

    Args:
        encoder: Of the plain CLIP family, in single precision.
        data: The site's records.
        start: What the sites received; B must not be zero, or A has no gradient.
        public: What every pair is compared with.
        job: Whose objective and clipping norm.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        data: SiteData,
        start: SharedAdapter,
        public: ProxySet,
        job: JobConfig,
    ) -> None:
        if not encoder.lean or encoder.precision != torch.float32:
            raise InputError(
                f"{encoder.base_name}: inversion is worked out for plain CLIP models in single "
                "precision; leave it out with --no-inversion"
            )
        self._encoder, self._data, self._start = encoder, data, start
        lacking = [m for t in TOWERS if not self.adapted(m := self.module(t, -1, "mlp.fc1"))]
        if lacking:
            raise InputError(
                f"{lacking[0]} carries no adapter, and it is there that inputs are read off; "
                "nothing is known of other layers"
            )
        self._train = prepare(encoder, data, "train")
        encoder.use(AdapterView(start))
        bank = open_bank(encoder, data, public, job.train)
        task = SiteTask(data, start, ("A", "B"), 0, 1)
        shift = (0, np.random.default_rng(0))
        self.gradients = PatientGradients(encoder, self._train, bank, task, 8, shift)
        self.patients = [batch for batch in patients_of(self._train) if len(batch.pairs)]

    def close(self) -> None:
        """Give the encoder back."""
        self.gradients.close()

    def alone(self, row: int) -> Batch:
        """Return one pair as all the records of a patient."""
        none = np.zeros(0, np.intp)
        return Batch(np.array([row], np.intp), none, none)

    def of(self, batches: Sequence[Batch]) -> list[Numbers]:
        """Return the gradients of some patients, (d,) each."""
        return [found.astype(np.float64) for found in self.gradients.of(batches)]

    def adapted(self, module: str) -> bool:
        """Return whether a layer carries an adapter."""
        return any(layer.module == module for layer in self._encoder.layout.layers)

    def readers(self) -> list[str]:
        """Return the layers off which a report's tokens can be read: the first of its tower."""
        parts = [self.module("text", 0, f"self_attn.{name}_proj") for name in "qkv"]
        return [module for module in parts if self.adapted(module)]

    def rows(self, gradient: Numbers, module: str) -> Numbers:
        """Return the gradient of one layer's A, (r, n), out of that of everything."""
        start = 0
        for name, factor in self._encoder.new_stack(1).factors.items():
            if factor.tower not in self._data.towers:
                continue
            size = factor.shape[0] * factor.shape[1]
            if name == factor_name(module, "A"):
                return gradient[start : start + size].reshape(factor.shape)
            start += size
        raise KeyError(module)

    def layer(self, tower: Tower, number: int) -> Any:  # noqa: ANN401 - a CLIPEncoderLayer
        """Return a layer of a tower."""
        model = self._encoder.model
        return (model.vision_model if tower == "image" else model.text_model).encoder.layers[number]

    def module(self, tower: Tower, number: int, part: str) -> str:
        """Return the path of a part of a layer."""
        path = "vision_model" if tower == "image" else "text_model"
        count = len(getattr(self._encoder.model, path).encoder.layers)
        return f"{path}.encoder.layers.{number % count}.{part}"

    @torch.no_grad()
    def pooled_inputs(self, tower: Tower, rows: NDArray[np.intp]) -> Numbers:
        """Return the inputs of the last layer's MLP at the pooled position, (rows, n)."""
        encoder = self._encoder
        seen: list[Tensor] = []
        self.gradients.close()  # the same function, merged
        encoder.use(AdapterView(self._start))
        module = encoder.model.get_submodule(self.module(tower, -1, "mlp.fc1"))
        hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        if tower == "image":
            encoder.encode_images(torch.from_numpy(self._train.split.pixels[rows]))
        else:
            encoder.encode_texts(encoder.pad([self._train.token_ids[row] for row in rows]))
        hook.remove()
        return np.asarray(seen[-1].double().cpu().numpy().reshape(len(rows), -1))

    def tokens(self, row: int) -> Sequence[int]:
        """Return the tokens of a record's report."""
        return self._train.token_ids[row]

    @torch.no_grad()
    def first_inputs(self, position: int) -> Numbers:
        """Return what every token gives the text tower's first layer at a position, (tokens, n)."""
        embeddings = self._encoder.model.text_model.embeddings
        places = embeddings.position_embedding.weight[position]
        known = self.layer("text", 0).layer_norm1(embeddings.token_embedding.weight + places)
        return np.asarray(known.double().cpu().numpy())


def exposures(
    victims: Victims, job: JobConfig, steps: PatientSteps, records: int, seed: int
) -> list[Exposure]:
    """Attack single records on every way out.

    Args:
        victims: The records.
        job: Its clipping norm bounds every site's change in the sum.
        steps: Clipping and noise of the noised way.
        records: How many are attacked, if there are so many.
        seed: Which of them, and who else is in the sums.
    """
    rng = np.random.default_rng(seed)
    pairs = np.concatenate([batch.pairs for batch in victims.patients])
    chosen = rng.permutation(pairs)[:records]
    views = _views(victims, job, steps, chosen, rng)
    found = [
        _pooled(victims, tower, way, chosen, pairs, views[way]) for way in WAYS for tower in TOWERS
    ]
    return [_with_tokens(victims, each, chosen, pairs, views[each.way]) for each in found]


def _views(
    victims: Victims,
    job: JobConfig,
    steps: PatientSteps,
    chosen: NDArray[np.intp],
    rng: np.random.Generator,
) -> dict[Way, list[Numbers]]:
    """Return what an attacker sees of every record's update, by way."""
    views: dict[Way, list[Numbers]] = {way: [] for way in WAYS}
    norm = job.aggregate.clip_norm
    alone = victims.of([victims.alone(int(row)) for row in chosen])
    # The other sites are the same for all, and have none of those that are attacked.
    everyone = np.array(sorted(int(row) for batch in victims.patients for row in batch.pairs))
    rest = rng.permutation(np.setdiff1d(everyone, chosen))
    size = max(1, min(job.train.batch_size, len(rest) // (OTHERS + 1)))
    batches = [rest[number * size : (number + 1) * size] for number in range(OTHERS + 1)]
    own = batches.pop()[: size - 1]
    others = [_mean_gradient(victims, batch) for batch in batches]
    beside = _mean_gradient(victims, own)
    for row, mine in zip(chosen, alone, strict=True):
        weights = _weights([1, *(len(batch) for batch in batches)], job)
        masked, total = secure_sum([mine, *others], weights, norm)
        _, equal = secure_sum([mine, *others], [1] * len(weights), norm)
        crowd = (mine + len(own) * beside) / (1 + len(own))
        _, batch = secure_sum([crowd, *others], [1] * len(weights), norm)
        noised = next(noised_sums(victims.gradients, [victims.alone(int(row))], steps, 1))
        for way, view in zip(WAYS, (mine, masked, total, equal, batch, noised), strict=True):
            views[way].append(view)
    return views


def _mean_gradient(victims: Victims, rows: NDArray[np.intp]) -> Numbers:
    found = victims.of([victims.alone(int(row)) for row in rows])
    return np.asarray(np.mean(found, axis=0) if found else np.zeros(len(victims.gradients.values)))


def _weights(records: Sequence[int], job: JobConfig) -> list[int]:
    """Return what sites with so many records weigh in a round of the job."""
    rule = job.aggregate
    counts = {str(number): count for number, count in enumerate(records)}
    counts = {site: max(1, count) for site, count in counts.items()}
    weights = integer_weights(counts, rule.weighting, rule.max_weight)
    return [weights[str(number)] for number in range(len(records))]


def secure_sum(
    changes: Sequence[Numbers], weights: Sequence[int], norm: float
) -> tuple[Numbers, Numbers]:
    """Carry out a secure sum and return what the coordinator sees.

    Args:
        changes: Of every site, (d,); clipped here as sites clip.
        weights: Of every site.
        norm: The L2 norm that they are clipped to.

    Returns:
        The first site's masked message, read as if it were a change; and the weighted mean.
    """
    whole = sum(weights)
    keys = {f"site-{number}": SigningKey.new() for number in range(len(changes))}
    scale = choose_scale(whole, norm, len(changes))
    session = Session(
        consortium="audit",
        run="audit",
        round=1,
        attempt=1,
        base=_ZEROS,
        job=_ZEROS,
        adapter=_ZEROS,
        form=hashlib.sha256(b"audit").hexdigest(),
        entries=len(changes[0]),
        scale=scale,
        clip_norm=norm,
        total_weight=whole,
        threshold=least_threshold(len(changes)),
        participants=tuple(Participant(name=n, key=key.public) for n, key in keys.items()),
    )
    vectors = {}
    for name, change, weight in zip(keys, changes, weights, strict=True):
        clipped, _ = clip({_VECTOR: change.astype(np.float32)}, norm)
        vectors[name] = encode(clipped, partial(_alike, weight), scale).numbers(np.uint32).copy()
    sites = {name: SiteSum(session, name, key) for name, key in keys.items()}
    server, questions, masked = CoordinatorSum(session), dict.fromkeys(keys, b""), b""
    while server.stage is not Stage.OVER:
        for name, site in sites.items():
            answer = _answer(site, server.stage, questions[name], vectors[name])
            if server.stage is Stage.MASK and not masked:
                masked = answer
            server.take(name, answer)
        questions = server.close()
    own = Masked.decode(masked, session).vector
    total = decode(server.result().total, whole, scale)
    return decode(own, weights[0], scale).astype(np.float64), total.astype(np.float64)


def _alike(weight: int, _factor: str) -> int:
    """Return the same weight for every factor."""
    return weight


def _answer(site: SiteSum, stage: Stage, question: bytes, vector: NDArray[np.uint32]) -> bytes:
    if stage is Stage.ADVERTISE:
        return site.advertise()
    if stage is Stage.MASK:
        return site.mask(question, vector.copy())
    if stage is Stage.SHARE:
        return site.share(question)
    return site.agree(question) if stage is Stage.AGREE else site.reveal(question)


def _pooled(
    victims: Victims,
    tower: Tower,
    way: Way,
    chosen: NDArray[np.intp],
    known: NDArray[np.intp],
    views: Sequence[Numbers],
) -> Exposure:
    """Recover the last layer's inputs; the mean input is of records that are not attacked."""
    norm = victims.layer(tower, -1).layer_norm2
    gain, bias = (part.detach().double().cpu().numpy() for part in (norm.weight, norm.bias))
    rest = np.setdiff1d(known, chosen)
    middle = victims.pooled_inputs(tower, rest if len(rest) else known).mean(0)
    truth = victims.pooled_inputs(tower, chosen)
    module = victims.module(tower, -1, "mlp.fc1")
    found = np.array(
        [
            cosine(
                normed_input(pooled_direction(victims.rows(view, module)), gain, bias), own, middle
            )
            for view, own in zip(views, truth, strict=True)
        ]
    )
    wide = 1.96 * float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else 1.0
    mean, largest = float(found.mean()), float(found.max())
    return Exposure(way, tower, mean, mean - wide, mean + wide, largest, None, None, len(found))


def _with_tokens(
    victims: Victims,
    exposure: Exposure,
    chosen: NDArray[np.intp],
    known: NDArray[np.intp],
    views: Sequence[Numbers],
) -> Exposure:
    """Read the reports' tokens off the first layer, and count how many are right."""
    modules = victims.readers()
    if exposure.tower != "text" or not modules:
        return exposure
    inputs = [
        victims.first_inputs(p) for p in range(max(len(victims.tokens(int(r))) for r in chosen))
    ]
    usual = _usual([victims.tokens(int(row)) for row in np.setdiff1d(known, chosen)])
    right = guessed = count = 0
    for row, view in zip(chosen, views, strict=True):
        tokens = victims.tokens(int(row))
        basis = spanned(np.concatenate([victims.rows(view, module) for module in modules]))
        for place, token in enumerate(tokens):
            right += read_token(basis, inputs[place]) == token
            guessed += usual.get(place) == token
        count += len(tokens)
    return replace(exposure, tokens=right / count, guessed=guessed / count)


def _usual(reports: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return the most frequent token at every position."""
    found = {}
    for place in range(max((len(tokens) for tokens in reports), default=0)):
        there = [tokens[place] for tokens in reports if len(tokens) > place]
        found[place] = int(np.bincount(there).argmax())
    return found
