"""What the layers below the first adapter give, computed once per record: training starts there.

With ``lora.layers = "top:N"`` those layers depend on the frozen base and the record alone: no
adapter, round, fold or personal fit changes what they give. Pictures that are moved at random
are another picture every time; nothing is kept of those.

Activations are as private as the pictures and texts that they come from. They are kept in this
process's memory, on the encoder's device, and nowhere else: in no file and in no message. They
go when the site's data or the encoder go.
"""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.batches import PreparedSplit, Rows, pixels_of, steps_of
from shared.adapter import TOWERS, Tower
from shared.config import JobConfig, TrainConfig
from shared.model.encoder import DualEncoder

_CHUNK = 64  # as many as CPUs are fastest with, and always the same, so that bits are
_MB = 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prefixes:
    """What the first adapted layer of one tower gets, for the records of one split.

    Attributes:
        hidden: (positions, d) of all records, one after the other, in the encoder's precision.
        starts: (n,) first position of every record or distinct text.
        lengths: (n,) how many it has.
        place: (rows,) which of the n belongs to a row of the split; -1 without.
    """

    hidden: Tensor
    starts: Tensor
    lengths: Tensor
    place: Tensor

    def of_rows(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return (b, t, d), t as the longest of these rows needs, and their last positions, (b,).

        Shorter ones are filled up with their own last position, which is never looked at.
        """
        chosen = self.place[torch.from_numpy(rows)].to(self.hidden.device)
        starts, last = self.starts[chosen], self.lengths[chosen] - 1
        longest = int(last.max()) + 1
        steps = torch.arange(longest, device=last.device)
        index = starts[:, None] + torch.minimum(steps, last[:, None])
        hidden = self.hidden.index_select(0, index.flatten())
        return hidden.view(len(rows), longest, -1), last


_KEPT: dict[tuple[int, int, Tower], Prefixes | None] = {}
"""By encoder, split and tower, which fix base, preprocessing, depth, precision and records."""


def kept_prefixes(encoder: DualEncoder, prepared: PreparedSplit, tower: Tower) -> Prefixes | None:
    """Return what is kept of a split for this very encoder; ``None`` if nothing is."""
    return _KEPT.get((id(encoder), id(prepared), tower))


def keep_prefixes(
    encoder: DualEncoder, prepared: PreparedSplit, job: JobConfig, *, training: bool
) -> None:
    """Compute what encoding a split can start from, where that pays and fits; once for a split.

    Args:
        encoder: Whichever function it computes.
        prepared: The split.
        job: For what a run asks of the split, and the memory that all sites may use.
        training: Whether the split is trained on, with pictures that are moved if the job says
            so; otherwise all of it is encoded as it is, round by round.
    """
    if job.train.prefix_cache_mb == 0:
        return
    moved = training and job.train.shift_pixels > 0
    for tower in TOWERS:
        key = (id(encoder), id(prepared), tower)
        if key in _KEPT or not encoder.frozen_layers[tower] or (tower == "image" and moved):
            continue
        count = len(_rows(prepared, tower))
        # To compute more in advance than a run asks for would cost more than it saves.
        if not count or (training and count > _visits(prepared, job)):
            continue
        _KEPT[key] = _compute(encoder, prepared, tower, job.train.prefix_cache_mb)
        for owner in (prepared, encoder):
            weakref.finalize(owner, _KEPT.pop, key, None)


def _visits(prepared: PreparedSplit, job: JobConfig) -> int:
    """Return how many records of a tower a whole run takes from a training split."""
    steps = job.rounds * steps_of(prepared, job.train)
    if job.personalize.method != "none":
        steps += job.personalize.steps
    return steps * min(job.train.batch_size, prepared.everything.size)


def held_bytes() -> int:
    """Return the memory that all sites of this process use for prefixes."""
    return sum(_bytes(kept.hidden) for kept in _KEPT.values() if kept is not None)


def why_recomputed(encoder: DualEncoder, config: TrainConfig) -> str | None:
    """Return why a step computes frozen layers that it need not, and what to set; one sentence.

    Returns:
        ``None`` if it does not, or if the lowest layers are adapted.
    """
    if encoder.lora.layers != "all" and not encoder.lean:
        return "Prefix cache: off, because it is for plain CLIP models and this base is another"
    if not any(encoder.frozen_layers.values()):
        return None
    if config.prefix_cache_mb == 0:
        return (
            "Prefix cache: off, because train.prefix_cache_mb = 0; layers below the adapters are "
            "computed in every step"
        )
    if config.shift_pixels and encoder.frozen_layers["image"]:
        return (
            f"Prefix cache: off for training pictures, because train.shift_pixels = "
            f"{config.shift_pixels} moves them at random; with 0 the layers below the adapters "
            "are computed once per picture. Texts are kept"
        )
    return None


def pad_prefixes(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join batches of texts, (b, t, d) and (b,), of different lengths t."""
    longest = max(hidden.shape[1] for hidden, _ in parts)
    padded = [
        torch.nn.functional.pad(hidden, (0, 0, 0, longest - hidden.shape[1])) for hidden, _ in parts
    ]
    return torch.cat(padded), torch.cat([ends for _, ends in parts])


def _rows(prepared: PreparedSplit, tower: Tower) -> Rows:
    """Return the rows whose prefixes differ: those with a picture, or the first of each text."""
    everything = prepared.everything
    if tower == "image":
        return np.sort(everything.with_image)
    rows = everything.with_text
    _, first = np.unique(prepared.text_numbers[rows].numpy(), return_index=True)
    distinct: Rows = rows[first]
    return distinct


def _place(prepared: PreparedSplit, tower: Tower, rows: Rows) -> Tensor:
    if tower == "text":
        return prepared.text_numbers  # numbered from 0 in the order of ``_rows``
    place = torch.full((len(prepared.split),), -1)
    place[torch.from_numpy(rows)] = torch.arange(len(rows))
    return place


def _compute(
    encoder: DualEncoder, prepared: PreparedSplit, tower: Tower, budget_mb: int
) -> Prefixes | None:
    """Return the prefixes of a split; ``None`` if they do not fit into what is left."""
    rows = _rows(prepared, tower)
    room = np.array([len(prepared.token_ids[row]) for row in rows])  # 0 for a lone picture
    longest = int(room.argmax())
    first, _ = _prefix(encoder, prepared, tower, rows[longest : longest + 1])
    if tower == "image" or first.shape[1] == 1:
        room = np.full(len(rows), first.shape[1])
    needed = int(room.sum()) * first.shape[2] * first.element_size()
    left = budget_mb * _MB - held_bytes()
    if needed > left:
        _log.warning(
            "prefix cache: the %s tower of a site needs %d MB, %d of train.prefix_cache_mb = %d "
            "are left; its frozen layers are computed in every step",
            *(tower, -(-needed // _MB), max(0, left) // _MB, budget_mb),
        )
        return None
    starts = np.concatenate([[0], np.cumsum(room)[:-1]])
    hidden = first.new_empty(int(room.sum()), first.shape[2])
    lengths = torch.from_numpy(room).to(hidden.device)
    order = np.argsort(room, kind="stable")  # texts of like length share a chunk
    for begin in range(0, len(rows), _CHUNK):
        chunk = order[begin : begin + _CHUNK]
        found, ends = _prefix(encoder, prepared, tower, rows[chunk])
        if tower == "text":
            lengths[torch.from_numpy(chunk).to(hidden.device)] = ends + 1
        for values, start, size in zip(found, starts[chunk], room[chunk], strict=True):
            hidden[start : start + size] = values[:size]
    place = _place(prepared, tower, rows)
    return Prefixes(hidden, torch.from_numpy(starts).to(hidden.device), lengths, place)


def _prefix(
    encoder: DualEncoder, prepared: PreparedSplit, tower: Tower, rows: Rows
) -> tuple[Tensor, Tensor]:
    if tower == "text":
        return encoder.text_prefix(encoder.pad([prepared.token_ids[row] for row in rows]))
    hidden = encoder.image_prefix(pixels_of(prepared, rows))
    return hidden, torch.full((len(rows),), hidden.shape[1] - 1, device=hidden.device)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
