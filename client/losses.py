"""What a site's records say about features: every record through the loss that fits it.

There is one path for paired, image-only, text-only, unpaired and mixed sites. Records are
picked by what they have, so nothing behind a mask is ever encoded:

    image and text              InfoNCE against the batch
    one side, labelled          cross-entropy against the site's prompts
    lone images, lone texts     semantic matching between them, if both are labelled
    one side, not labelled      relational distillation from the received model
    one side                    anchor to the received model
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Batch, PreparedSplit, Rows, prepare
from client.data.records import Prompts, SiteData
from client.encoding import Features, Part, encode_all
from shared.model.encoder import DualEncoder
from shared.objectives.anchor import anchor
from shared.objectives.infonce import infonce, pair_targets
from shared.objectives.matching import matching
from shared.objectives.prompts import prevalence_logit, prompt_loss
from shared.objectives.relational import relational

_BLOCK = 1024
_MATCHING_WEIGHT = 0.5


@dataclass(frozen=True)
class PromptSet:
    """The site's prompts as the frozen received model embeds them.

    Attributes:
        columns: Which label columns have prompts.
        directions: (findings, d) mean positive minus mean negative prompt.
        prior: (findings,) logit of the prevalence among the labelled training records.
    """

    columns: Rows
    directions: Tensor
    prior: Tensor


@dataclass(frozen=True)
class Teacher:
    """Features that the received model gives to some rows of the training split, by row.

    Attributes:
        image: (n, d), zeros where not needed.
        text: (n, d), zeros where not needed.
        lone: Weight of the anchor for records with one side.
        paired: Weight of the anchor for records with both.
    """

    image: Tensor
    text: Tensor
    lone: float
    paired: float


@dataclass(frozen=True)
class RecordLosses:
    """Loss of every record in nats, by stratum; rows as in the batch."""

    pairs: Tensor
    images: Tensor
    texts: Tensor


@torch.no_grad()
def embed_prompts(encoder: DualEncoder, data: SiteData) -> PromptSet | None:
    """Embed the site's prompts under the view in use.

    Returns:
        ``None`` if no finding has prompts, or no record needs them: pairs learn from each other.
    """
    columns = [
        number
        for number, finding in enumerate(data.findings)
        if (p := data.prompts.get(finding)) is not None and p.positive and p.negative
    ]
    train, val = (prepare(encoder, data, split) for split in ("train", "val"))
    lone = sum(len(s.everything.images) + len(s.everything.texts) for s in (train, val))
    if not columns or not lone or not bool(train.labelled.any()):
        return None
    directions = prompt_directions(encoder, [data.prompts[data.findings[c]] for c in columns])
    prior = prevalence_logit(train.labels[train.labelled][:, columns]).to(encoder.device)
    return PromptSet(np.array(columns, dtype=np.intp), directions, prior)


@torch.no_grad()
def prompt_directions(encoder: DualEncoder, prompts: Sequence[Prompts]) -> Tensor:
    """Return mean positive minus mean negative prompt under the view in use, (findings, d)."""
    sides = [texts for each in prompts for texts in (each.positive, each.negative)]
    everything = encoder.encode_texts(encoder.tokenize([text for side in sides for text in side]))
    means = [part.mean(0) for part in everything.split([len(side) for side in sides])]
    return torch.stack(means[0::2]) - torch.stack(means[1::2])


@torch.no_grad()
def ask_teacher(
    encoder: DualEncoder,
    prepared: PreparedSplit,
    batches: Iterable[Batch],
    *,
    lone: float,
    paired: float,
) -> Teacher | None:
    """Keep what the view in use says about the rows that are going to need it."""
    plan = list(batches)
    image_rows, text_rows = _needed(plan, paired > 0)
    if not len(image_rows) and not len(text_rows):
        return None
    none: Rows = image_rows[:0]
    found = encode_all(encoder, prepared, Batch(none, image_rows, text_rows))
    count = len(prepared.split)
    image = torch.zeros(count, found.image.shape[1], device=encoder.device)
    text = torch.zeros(count, found.text.shape[1], device=encoder.device)
    image[torch.from_numpy(image_rows).to(encoder.device)] = found.image
    text[torch.from_numpy(text_rows).to(encoder.device)] = found.text
    return Teacher(image, text, lone, paired)


def _needed(plan: Iterable[Batch], pairs_too: bool) -> tuple[Rows, Rows]:
    images, texts = set(), set()
    for batch in plan:
        images.update((batch.with_image if pairs_too else batch.images).tolist())
        texts.update((batch.with_text if pairs_too else batch.texts).tolist())
    return np.array(sorted(images), dtype=np.intp), np.array(sorted(texts), dtype=np.intp)


@dataclass(frozen=True)
class LossContext:
    """What a batch's loss needs beside the batch.

    Attributes:
        prompts: For lone labelled records.
        teacher: For anchors and relations.
        scale: Inverse temperature of the base.
        kappa: Label similarity of the soft targets.
    """

    prompts: PromptSet | None
    teacher: Teacher | None
    scale: float
    kappa: float = 0.0


def record_losses(
    features: Features, prepared: PreparedSplit, batch: Batch, context: LossContext
) -> RecordLosses:
    """Return InfoNCE of every pair and prompt loss of every lone labelled record (0 for others)."""
    both = len(batch.pairs)
    pairs = torch.zeros(0, device=features.image.device)
    if both:
        rows = torch.from_numpy(batch.pairs)
        labels, labelled = prepared.labels[rows], prepared.labelled[rows]
        targets = pair_targets(prepared.text_numbers[rows], labels, labelled, context.kappa)
        image, text = features.image[:both], features.text[:both]
        pairs = infonce(image, text, targets.to(image.device), context.scale)
    return RecordLosses(
        pairs,
        _prompt_losses(features.image[both:], prepared, batch.images, context),
        _prompt_losses(features.text[both:], prepared, batch.texts, context),
    )


def _prompt_losses(
    features: Tensor, prepared: PreparedSplit, rows: Rows, context: LossContext
) -> Tensor:
    prompts = context.prompts
    if prompts is None or not len(rows):
        return torch.zeros(len(rows), device=features.device)
    labels = prepared.labels[rows][:, prompts.columns].to(features.device)
    known = prepared.labelled[rows].to(features.device)
    losses = prompt_loss(features, prompts.directions, prompts.prior, labels, context.scale)
    return losses * known


def batch_losses(
    features: Sequence[Features], parts: Sequence[Part], contexts: Sequence[LossContext]
) -> Tensor:
    """Return the loss of every part in nats, (parts,): a record weighs the same in its tower.

    Parts of pairs alone, equally many, are computed side by side; their negatives never mix.
    """
    losses: dict[int, Tensor] = {}
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, (part, context) in enumerate(zip(parts, contexts, strict=True)):
        batch, labels = part.batch, part.prepared.labels.shape[1]
        if len(batch.images) or len(batch.texts) or not len(batch.pairs):
            losses[number] = _mixed_loss(features[number], part.prepared, batch, context)
        else:
            alike.setdefault((len(batch.pairs), labels), []).append(number)
    for numbers in alike.values():
        found = _paired_losses(
            [features[number] for number in numbers],
            [parts[number] for number in numbers],
            [contexts[number] for number in numbers],
        )
        losses |= dict(zip(numbers, found.unbind(), strict=True))
    return torch.stack([losses[number] for number in range(len(parts))])


def _paired_losses(
    features: Sequence[Features], parts: Sequence[Part], contexts: Sequence[LossContext]
) -> Tensor:
    """Return the loss of parts that hold n pairs each and nothing else, (parts,)."""
    image = torch.stack([found.image for found in features])
    text = torch.stack([found.text for found in features])
    rows = [torch.from_numpy(part.batch.pairs) for part in parts]
    prepared = [part.prepared for part in parts]
    targets = pair_targets(
        torch.stack([p.text_numbers[row] for p, row in zip(prepared, rows, strict=True)]),
        torch.stack([p.labels[row] for p, row in zip(prepared, rows, strict=True)]),
        torch.stack([p.labelled[row] for p, row in zip(prepared, rows, strict=True)]),
        contexts[0].kappa,
    )
    losses = infonce(image, text, targets.to(image.device), contexts[0].scale)
    taught = [n for n, context in enumerate(contexts) if context.teacher and context.teacher.paired]
    if not taught:
        return losses.mean(-1)
    kept = [losses[number].mean() for number in range(len(parts))]
    for number in taught:
        kept[number] = kept[number] + _held(features[number], rows[number], contexts[number])
    return torch.stack(kept)


def _held(features: Features, rows: Tensor, context: LossContext) -> Tensor:
    """Return the mean anchor of pairs to the teacher, both sides added up."""
    teacher = context.teacher
    if teacher is None or not teacher.paired:
        return features.image.new_zeros(())
    place = rows.to(features.image.device)
    both = anchor(features.image[: len(rows)], teacher.image[place]) + anchor(
        features.text[: len(rows)], teacher.text[place]
    )
    return context.scale * teacher.paired * both.mean()


def _mixed_loss(
    features: Features, prepared: PreparedSplit, batch: Batch, context: LossContext
) -> Tensor:
    """Return the loss of a batch that has records with one side."""
    scale, teacher = context.scale, context.teacher
    losses = record_losses(features, prepared, batch, context)
    total = losses.pairs.sum() + losses.images.sum() + losses.texts.sum()
    both = len(batch.pairs)
    image, text = features.image[both:], features.text[both:]
    total = total + _matched(image, text, prepared, batch, scale)
    if teacher is not None:
        if len(batch.images):
            total = total + _kept(image, teacher.image, prepared, batch.images, context)
        if len(batch.texts):
            total = total + _kept(text, teacher.text, prepared, batch.texts, context)
        if both:
            total = total + both * _held(features, torch.from_numpy(batch.pairs), context)
    return total / batch.size


def _matched(
    image: Tensor, text: Tensor, prepared: PreparedSplit, batch: Batch, scale: float
) -> Tensor:
    """Semantic matching between lone labelled images and lone labelled texts, summed."""
    known_images = prepared.labelled[batch.images]
    known_texts = prepared.labelled[batch.texts]
    if not prepared.labels.shape[1] or not bool(known_images.any()) or not bool(known_texts.any()):
        return image.new_zeros(())
    device = image.device
    to_text, to_image = matching(
        image[known_images.to(device)],
        text[known_texts.to(device)],
        prepared.labels[batch.images][known_images].to(device),
        prepared.labels[batch.texts][known_texts].to(device),
        scale,
    )
    return 0.5 * _MATCHING_WEIGHT * (to_text.sum() + to_image.sum())


def _kept(
    features: Tensor, teacher: Tensor, prepared: PreparedSplit, rows: Rows, context: LossContext
) -> Tensor:
    """Anchor of every lone record, and relations of those that have no label to learn from."""
    wanted = teacher[torch.from_numpy(rows).to(features.device)]
    weight = context.teacher.lone if context.teacher is not None else 0.0
    total = context.scale * weight * anchor(features, wanted).sum()
    mute = ~prepared.labelled[rows]
    if context.prompts is None:
        mute = torch.ones_like(mute)
    if bool(mute.any()):
        silent = mute.to(features.device)
        total = total + relational(features[silent], wanted[silent], context.scale).sum()
    return total


@dataclass(frozen=True)
class HeldOut:
    """Losses of the records that can be scored, in nats, and their rows in the split."""

    losses: NDArray[np.float64]
    rows: Rows


@torch.no_grad()
def held_out_losses(
    features: Features,
    prepared: PreparedSplit,
    prompts: PromptSet | None,
    scale: float,
    kappa: float = 0.0,
) -> HeldOut:
    """Score a whole split: InfoNCE of pairs (at most 1024 at once), prompts of lone labelled ones.

    Args:
        features: Of ``prepared.everything``.
        prepared: The split.
        prompts: As the frozen received model embeds them.
        scale: Inverse temperature.
        kappa: Label similarity of the soft targets.
    """
    everything = prepared.everything
    context = LossContext(prompts, None, scale, kappa)
    both, none = len(everything.pairs), everything.pairs[:0]
    blocks = np.array_split(np.arange(both), max(1, -(-both // _BLOCK)))
    losses, rows = [], []
    for block in blocks:
        part = Batch(everything.pairs[block], none, none)
        if len(block) > 1:
            some = Features(features.image[block], features.text[block])
            losses.append(record_losses(some, prepared, part, context).pairs)
            rows.append(part.pairs)
    alone = Batch(none, everything.images, everything.texts)
    rest = Features(features.image[both:], features.text[both:])
    found = record_losses(rest, prepared, alone, context)
    if prompts is not None:
        for values, where in ((found.images, alone.images), (found.texts, alone.texts)):
            known = prepared.labelled[where]
            losses.append(values[known.to(values.device)])
            rows.append(where[known.numpy()])
    if not losses:
        return HeldOut(np.zeros(0), none)
    return HeldOut(torch.cat(losses).double().cpu().numpy(), np.concatenate(rows))
