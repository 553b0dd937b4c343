"""Losses of a site's records against the public set: every record's is a function of it alone.

What else goes into them is public or released: the public pairs and the site's prompts as the
received model embeds them, and that model as the teacher of lone records. Neither another record
of the site nor anything that is counted over its records does, not even which findings occur.

    image and text        contrast with the public pairs (``shared.objectives.bank``)
    labelled              cross-entropy against the site's prompts, half for each side of a pair
    one side              anchor to the received model

Where groups of patients are clipped as a whole, pairs contrast with the others of their group
instead of with the public pairs (``grouped_loss``); a group's loss is a function of that group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.batches import PreparedSplit, Rows, prepare
from client.data.records import SiteData
from client.encoding import Features, Part, encode_all
from client.losses import Teacher, ask_teacher, prompt_directions
from client.proxy import ProxySet
from shared.adapter import Tower
from shared.config import TrainConfig
from shared.errors import RefusedError
from shared.model.encoder import DualEncoder
from shared.objectives.anchor import anchor
from shared.objectives.bank import bank_contrast
from shared.objectives.infonce import infonce, pair_targets
from shared.objectives.labels import label_similarity
from shared.objectives.prompts import prevalence_logit, prompt_loss


@dataclass(frozen=True)
class BankPrompts:
    """Prompts of findings that the public set has.

    Attributes:
        columns: Which of the public set's findings.
        directions: (columns, d) under the received model.
        prior: (columns,) logit of the prevalence in the public set.
    """

    columns: Rows
    directions: Tensor
    prior: Tensor


@dataclass(frozen=True)
class Bank:
    """Everything that a record's loss needs beside the record's features.

    Attributes:
        image: (m, d) features of the public pictures under the received model.
        text: (m, d) features of their texts.
        same_text: (m,) the number that a public pair's text has among the site's, -2 if none.
        labels: (m, findings) of the public pairs.
        labelled: (m,) bool.
        own_labels: (n, findings) of the site's records; the findings are the public set's.
        prompts: ``None`` if the public set has no finding that the site has prompts for.
        teacher: The received model's features of lone records; ``None`` if there are none.
        scale: Inverse temperature.
        kappa: Weight of pairs with similar labels as positives.
        groups: Whether pairs contrast with those of their part rather than with the public ones.
    """

    image: Tensor
    text: Tensor
    same_text: Tensor
    labels: Tensor
    labelled: Tensor
    own_labels: Tensor
    prompts: BankPrompts | None
    teacher: Teacher | None
    scale: float
    kappa: float
    groups: bool = False


@torch.no_grad()
def open_bank(
    encoder: DualEncoder,
    data: SiteData,
    public: ProxySet,
    config: TrainConfig,
    *,
    groups: bool = False,
) -> Bank:
    """Embed public pairs, prompts and lone records under the view in use, the received model.

    Raises:
        RefusedError: ``privacy-plan`` if the public set has a picture of the site's own.
    """
    check_no_own_records(data, public)
    pairs, train = prepare(encoder, public.data, "train"), prepare(encoder, data, "train")
    found = encode_all(encoder, pairs, pairs.everything)
    numbers = dict(zip(train.split.texts, train.text_numbers.tolist(), strict=True))
    own_labels = torch.zeros(len(train.split), len(public.data.findings))
    for place, finding in enumerate(public.data.findings):
        if finding in data.findings:
            own_labels[:, place] = train.labels[:, data.findings.index(finding)]
    return Bank(
        image=found.image,
        text=found.text,
        same_text=torch.tensor([numbers.get(text, -2) for text in pairs.split.texts]),
        labels=pairs.labels,
        labelled=pairs.labelled,
        own_labels=own_labels,
        prompts=_prompts(encoder, data, public),
        teacher=ask_teacher(encoder, train, [train.everything], lone=config.anchor, paired=0.0),
        scale=encoder.logit_scale,
        kappa=config.label_similarity,
        groups=groups,
    )


def check_no_own_records(data: SiteData, public: ProxySet) -> None:
    """Raise if one of a site's pictures is in the public set.

    Raises:
        RefusedError: ``privacy-plan``.
    """
    known = _pictures(public.data)
    if known & _pictures(data):
        raise RefusedError(
            "privacy-plan",
            "the public set has pictures of the site's own, so every gradient would depend on "
            "patients that it is not counted for; take them out of it",
        )


def _pictures(data: SiteData) -> set[bytes]:
    return {
        np.asarray(split.pixels[row]).tobytes()
        for split in data.splits.values()
        for row in np.flatnonzero(split.has_image)
    }


def _prompts(encoder: DualEncoder, data: SiteData, public: ProxySet) -> BankPrompts | None:
    findings = public.data.findings
    columns = [
        number
        for number, finding in enumerate(findings)
        if (p := data.prompts.get(finding)) is not None and p.positive and p.negative
    ]
    pairs = prepare(encoder, public.data, "train")
    if not columns or not bool(pairs.labelled.any()):
        return None
    directions = prompt_directions(encoder, [data.prompts[findings[column]] for column in columns])
    prior = prevalence_logit(pairs.labels[pairs.labelled][:, columns]).to(encoder.device)
    return BankPrompts(np.array(columns, np.intp), directions, prior)


def separable_loss(features: Sequence[Features], parts: Sequence[Part], bank: Bank) -> Tensor:
    """Return the losses of all records of some parts, added up, in nats: a scalar.

    The gradient of a part's adapter is that of the losses of the part's own records.

    Args:
        features: Of every part, with gradients.
        parts: Of one split.
        bank: What the records are compared with.
    """
    prepared = parts[0].prepared
    total = _each_alone(features, parts, bank)
    found = _paired(features, parts)
    if found is not None:
        image, text, pairs = found
        positives = _positives(prepared, pairs, bank).to(image.device)
        both = (bank.image, bank.text)
        total = total + bank_contrast(image, text, both, positives, bank.scale).sum()
    return total


def grouped_loss(features: Sequence[Features], parts: Sequence[Part], bank: Bank) -> Tensor:
    """As ``separable_loss``, but a pair's negatives are the other pairs of its part.

    The gradient of a part's adapter depends on all records of the part, and on no other part's.
    A pair that is alone in its part has no negatives, and so no contrast.
    """
    total = _each_alone(features, parts, bank)
    for found, part in zip(features, parts, strict=True):
        prepared, count = part.prepared, len(part.batch.pairs)
        if count < 2:
            continue
        place = torch.from_numpy(part.batch.pairs)
        targets = pair_targets(
            prepared.text_numbers[place], bank.own_labels[place], prepared.labelled[place],
            bank.kappa,
        ).to(found.image.device)  # fmt: skip
        image, text = found.image[:count], found.text[:count]
        total = total + infonce(image, text, targets, bank.scale).sum()
    return total


def _paired(
    features: Sequence[Features], parts: Sequence[Part]
) -> tuple[Tensor, Tensor, Rows] | None:
    """Return image and text features of all pairs, and their rows; ``None`` without pairs."""
    pairs = np.concatenate([part.batch.pairs for part in parts])
    if not len(pairs):
        return None
    there = [(f, len(p.batch.pairs)) for f, p in zip(features, parts, strict=True)]
    image = torch.cat([found.image[:count] for found, count in there if count])
    return image, torch.cat([found.text[:count] for found, count in there if count]), pairs


def _each_alone(features: Sequence[Features], parts: Sequence[Part], bank: Bank) -> Tensor:
    """Return what records lose by themselves: prompts of labelled ones, anchors of lone ones."""
    prepared, total = parts[0].prepared, torch.zeros((), device=bank.image.device)
    found = _paired(features, parts)
    if found is not None:
        image, text, pairs = found
        total = total + 0.5 * _prompted(image, prepared, pairs, bank)
        total = total + 0.5 * _prompted(text, prepared, pairs, bank)
    there = [(f, p.batch, len(p.batch.pairs)) for f, p in zip(features, parts, strict=True)]
    total = total + _lone([(f.image[n:], b.images) for f, b, n in there], prepared, bank, "image")
    return total + _lone([(f.text[n:], b.texts) for f, b, n in there], prepared, bank, "text")


def _lone(
    found: Sequence[tuple[Tensor, Rows]], prepared: PreparedSplit, bank: Bank, tower: Tower
) -> Tensor:
    """Return the losses of records with one side, added up."""
    there = [(own, rows) for own, rows in found if len(rows)]
    if not there:
        return torch.zeros((), device=bank.image.device)
    features = torch.cat([own for own, _ in there])
    rows = np.concatenate([rows for _, rows in there])
    total = _prompted(features, prepared, rows, bank)
    if bank.teacher is not None:
        teacher = bank.teacher.image if tower == "image" else bank.teacher.text
        taught = teacher[torch.from_numpy(rows).to(teacher.device)]
        total = total + bank.scale * bank.teacher.lone * anchor(features, taught).sum()
    return total


def _positives(prepared: PreparedSplit, rows: Rows, bank: Bank) -> Tensor:
    """Return how much every public pair is a positive of some pairs, (n, m)."""
    place = torch.from_numpy(rows)
    same = (prepared.text_numbers[place][:, None] == bank.same_text[None, :]).float()
    if bank.kappa == 0.0 or bank.labels.shape[1] == 0:
        return same
    alike = label_similarity(bank.own_labels[place], bank.labels)
    known = (prepared.labelled[place][:, None] & bank.labelled[None, :]).float()
    return torch.maximum(same, bank.kappa * known * alike)


def _prompted(features: Tensor, prepared: PreparedSplit, rows: Rows, bank: Bank) -> Tensor:
    """Return the prompt losses of the labelled ones among some records, added up."""
    prompts, place = bank.prompts, torch.from_numpy(rows)
    if prompts is None:
        return features.new_zeros(())
    labels = bank.own_labels[place][:, prompts.columns].to(features.device)
    losses = prompt_loss(features, prompts.directions, prompts.prior, labels, bank.scale)
    return losses[prepared.labelled[place].to(features.device)].sum()
