"""Training the rows of a stack of adapters side by side, each as if it were alone.

One forward and backward pass serves all sites of a cohort. Losses are per site and gradients
of one row never depend on another, so that a row ends, to rounding, as it would have alone:
it has its own batches, learning rate, number of steps, norm and clipping, and a row whose
loss is not finite fails alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.balance import coefficients, discrepancy
from client.encoding import Features, Part, encode
from client.features import Contrast
from client.losses import LossContext, batch_losses
from client.progress import step_done
from shared.adapter import TOWERS, Factor, Tower
from shared.config import TrainConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.stack import AdapterStack

BETAS = (0.9, 0.98)
_LOWEST_RATE = 0.05
_TINY = 1e-6  # as in torch's clip_grad_norm_


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: a warm-up, and a cosine over the whole run down to 5 %.

    Attributes:
        peak: Highest learning rate.
        warmup: Steps until the peak, counted from the first step of this fit.
        total: Steps of the whole run; 0 keeps the rate constant.
        before: Steps of the run that were taken before this fit.
    """

    peak: float
    warmup: int
    total: int = 0
    before: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of this fit, counted from 0."""
        rate = self.peak * min(1.0, (step + 1) / (self.warmup + 1))
        if not self.total:
            return rate
        done = min(1.0, (self.before + step) / self.total)
        return rate * (_LOWEST_RATE + (1 - _LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Block:
    """A batch of one site within a step: its negatives are its own."""

    part: Part
    context: LossContext | Contrast
    weight: float = 1.0


@dataclass(frozen=True)
class Learner:
    """What trains one row of the stack.

    Attributes:
        plan: The blocks of every step; their parts name this learner's row.
        steps: How many to take.
        schedule: Learning rate by step.
        towers: Trained towers; factors of others stay as they are, bit for bit.
        rank: So many columns are trained, the others stay as they are; all if not given.
    """

    plan: Iterator[Sequence[Block]]
    steps: int
    schedule: Schedule
    towers: tuple[Tower, ...]
    rank: int | None = None


@dataclass(frozen=True)
class FitResult:
    """Mean loss in nats, steps, and mean gradient norm per tower, before clipping.

    ``discrepancy`` says how far ahead each tower is (``client.balance``), if both are trained.
    """

    loss: float
    steps: int
    gradient_norms: dict[Tower, float]
    discrepancy: dict[Tower, float]


def fit(
    encoder: DualEncoder,
    stack: AdapterStack,
    learners: Sequence[Learner],
    factors: Sequence[Factor],
    config: TrainConfig,
) -> list[FitResult | TrainingError]:
    """Train the rows of a stack that is in use, in place, with AdamW.

    AdamW: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101. FedProx (Li et al.,
    2020, https://arxiv.org/abs/1812.06127) adds mu / 2 times the squared distance to the start.

    Returns:
        Per learner what came of it; ``loss-not-finite`` if a loss or a factor of its row is
        not finite.
    """
    stack.train(factors)
    try:
        rows = _Rows(stack, learners, factors, config)
        steps = max((learner.steps for learner in learners), default=0)
        for step in range(steps):
            rows.begin(step)
            blocks = [block for learner in rows.active(step) for block in next(learner.plan)]
            stack.gradients.zero_()
            rows.note(blocks, _backward(encoder, blocks, len(stack)))
            rows.step()
            step_done(step + 1, steps)
        return rows.results()
    finally:
        stack.train(())


def _backward(encoder: DualEncoder, blocks: Sequence[Block], adapters: int) -> Tensor:
    """Propagate the weighted losses of all blocks back; return them, (blocks,)."""
    parts = [block.part for block in blocks]
    features = encode(encoder, parts, adapters)
    losses = _losses(features, blocks)
    weights = torch.tensor([block.weight for block in blocks], device=losses.device)
    weighted = losses * weights
    weighted.sum().backward()
    return weighted.detach()


def _losses(features: Sequence[Features], blocks: Sequence[Block]) -> Tensor:
    """Return the loss of every block, (blocks,): of records, or of public items."""
    own: dict[int, LossContext] = {}
    losses: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        if isinstance(block.context, Contrast):
            losses[number] = block.context.loss(features[number], block.part.batch)
        else:
            own[number] = block.context
    contexts = list(own.values())
    if not losses:
        return batch_losses(features, [block.part for block in blocks], contexts)
    parts = [blocks[number].part for number in own]
    found = batch_losses([features[number] for number in own], parts, contexts)
    losses |= dict(zip(own, found.unbind(), strict=True))
    return torch.stack([losses[number] for number in range(len(blocks))])


class _Rows:
    """Optimiser, norms and losses of every row."""

    def __init__(
        self,
        stack: AdapterStack,
        learners: Sequence[Learner],
        factors: Sequence[Factor],
        config: TrainConfig,
    ) -> None:
        self._stack, self._learners, self._config = stack, learners, config
        self._frozen = stack.beyond([each.rank or stack.rank for each in learners])
        kept = config.proximal or self._frozen is not None
        self._start = stack.values.clone() if kept else None
        self._slices = [stack.slices(factors, learner.towers) for learner in learners]
        # Slices cannot be hashed in Python 3.11.
        self._columns = self._stack.slices(factors, TOWERS)
        # Rows that always have the same rate share a group: a call of the optimiser each.
        groups: dict[tuple[Schedule, int], list[Tensor]] = {}
        for row, (learner, slices) in enumerate(zip(learners, self._slices, strict=True)):
            group = groups.setdefault((learner.schedule, learner.steps), [])
            for _, columns in slices:
                parameter = stack.values[row, columns].detach()
                parameter.grad = stack.gradients[row, columns]
                group.append(parameter)
        self._schedules = list(groups)
        self._optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters in groups.values()],
            betas=BETAS,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._losses: list[Tensor] = []
        self._norms: list[dict[Tower, Tensor]] = []

    def begin(self, step: int) -> None:
        """Set learning rates; a row that is done is not touched any more."""
        groups = self._optimizer.param_groups
        for (schedule, steps), group in zip(self._schedules, groups, strict=True):
            group["lr"] = schedule.rate(step)
            if step >= steps:
                for parameter in group["params"]:
                    parameter.grad = None

    def active(self, step: int) -> list[Learner]:
        return [learner for learner in self._learners if step < learner.steps]

    def note(self, blocks: Sequence[Block], losses: Tensor) -> None:
        """Add up the losses of every row's blocks."""
        row = torch.tensor([block.part.adapter for block in blocks], device=losses.device)
        total = losses.new_zeros(len(self._learners))
        self._losses.append(total.index_add_(0, row, losses))

    def step(self) -> None:
        """Clip every row to the largest norm and let the optimiser take a step."""
        gradients = self._stack.gradients
        if self._start is not None:
            gradients.add_(self._stack.values - self._start, alpha=self._config.proximal)
        if self._frozen is not None:
            gradients.masked_fill_(self._frozen, 0.0)
        norms = self._norms_by_tower(gradients)
        self._norms.append(norms)
        whole = torch.stack(list(norms.values())).square().sum(0).sqrt()
        share = (self._config.max_gradient_norm / (whole + _TINY)).clamp(max=1.0)
        gradients.mul_(share[:, None])
        before = self._stack.values.clone() if self._config.balance else None
        self._optimizer.step()
        if before is not None:
            self._balance(before, norms)
        if self._frozen is not None and self._start is not None:  # weight decay moves all
            self._stack.values.copy_(torch.where(self._frozen, self._start, self._stack.values))

    def _balance(self, before: Tensor, norms: dict[Tower, Tensor]) -> None:
        """Take back a part of the step of the tower that runs ahead: a smaller learning rate."""
        share = coefficients(norms, self._config.balance)
        values = self._stack.values
        for tower, columns in self._columns:
            moved = torch.lerp(before[:, columns], values[:, columns], share[tower][:, None])
            values[:, columns] = moved

    def _norms_by_tower(self, gradients: Tensor) -> dict[Tower, Tensor]:
        squares: dict[Tower, Tensor] = {}
        for tower, columns in self._columns:
            found = torch.linalg.vector_norm(gradients[:, columns], dim=1).square()
            squares[tower] = squares[tower] + found if tower in squares else found
        return {tower: square.sqrt() for tower, square in squares.items()}

    def results(self) -> list[FitResult | TrainingError]:
        losses = torch.stack(self._losses).cpu()
        norms = {
            tower: torch.stack([found[tower] for found in self._norms]).cpu()
            for tower in self._norms[0]
        }
        finite = self._stack.values.isfinite().all(1).tolist()
        return [
            self._result(row, losses[: learner.steps, row], norms, finite=finite[row])
            for row, learner in enumerate(self._learners)
        ]

    def _result(
        self, row: int, losses: Tensor, norms: dict[Tower, Tensor], *, finite: bool
    ) -> FitResult | TrainingError:
        """Return what came of a row, by its losses (steps,) and the norms of all (steps, rows)."""
        if not (finite and bool(losses.isfinite().all())):
            return TrainingError(
                "loss-not-finite",
                "the loss or an adapter became infinite or not a number; train with a smaller "
                "learning rate, or check the pictures and labels for constant values",
            )
        trained = dict.fromkeys(tower for tower, _ in self._slices[row])
        own = {tower: norms[tower][: len(losses), row] for tower in trained}
        means = {tower: float(norm.mean()) for tower, norm in own.items()}
        return FitResult(float(losses.mean()), len(losses), means, discrepancy(own))
