"""Fitting many rows at once, on losses that can be worked out by hand."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from client import fitting
from client.encoding import Part
from client.fitting import Block, FitResult, Learner, Schedule, fit
from shared.adapter import AdapterLayout, LayerShape
from shared.config import TrainConfig
from shared.errors import TrainingError
from shared.model.stack import AdapterStack

# One number per factor: a row is A and B of the image tower, then A and B of the text tower.
LAYOUT = AdapterLayout((LayerShape("v", "image", 1, 1), LayerShape("t", "text", 1, 1)), 1, 1.0)
BOTH = ("image", "text")
Loss = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def losses_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's context is a function of its row's four numbers."""

    def batch_losses(stack: AdapterStack, parts: Sequence[Part], contexts: Sequence[Loss]):
        views = [stack.view(name).reshape(len(stack)) for name in stack.factors]
        rows = torch.stack(views, 1)
        losses = [loss(rows[part.adapter]) for part, loss in zip(parts, contexts, strict=True)]
        return torch.stack(losses)

    monkeypatch.setattr(fitting, "encode", lambda stack, parts, adapters: stack)
    monkeypatch.setattr(fitting, "batch_losses", batch_losses)


def always(row: int, *losses: Loss, weight: float = 1.0) -> Iterator[list[Block]]:
    while True:
        yield [Block(Part(None, None, row), loss, weight) for loss in losses]


def learner(
    row: int, *losses: Loss, steps: int = 1, rate: float = 0.05, towers=BOTH, weight: float = 1.0
) -> Learner:
    return Learner(always(row, *losses, weight=weight), steps, Schedule(rate, warmup=0), towers)


def stack_of(*rows: Sequence[float]) -> AdapterStack:
    stack = AdapterStack(LAYOUT, len(rows), torch.device("cpu"))
    stack.values.copy_(torch.tensor(rows))
    return stack


def fitted(
    stack: AdapterStack, learners: Sequence[Learner], factors=("A", "B"), **config: float
) -> list[FitResult | TrainingError]:
    return fit(stack, stack, learners, factors, TrainConfig(**config))


def image_a(factor: float) -> Loss:
    return lambda row: factor * row[0]


def pull(place: float) -> Loss:
    return lambda row: 0.5 * (row - place).square().sum()


ZERO = (0.0, 0.0, 0.0, 0.0)


def test_rows_are_clipped_one_by_one_and_norms_are_told_before_clipping(monkeypatch) -> None:
    seen = []

    class Watch(torch.optim.AdamW):
        def step(self, closure=None):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            # Both factors of a tower lie side by side, so every row has two parameters.
            rows = [gradients[:2], gradients[2:]]
            seen.extend(float(torch.cat(row).norm()) for row in rows)
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watch)
    steep = learner(0, lambda row: 30.0 * row[0] + 40.0 * row[3])
    flat = learner(1, image_a(0.25))
    results = fitted(stack_of(ZERO, ZERO), [steep, flat], max_gradient_norm=0.5)
    assert seen == [pytest.approx(0.5, rel=1e-4), pytest.approx(0.25, rel=1e-4)]
    assert results[0].gradient_norms == {"image": pytest.approx(30), "text": pytest.approx(40)}
    assert results[1].gradient_norms == {"image": pytest.approx(0.25), "text": 0.0}


def test_blocks_of_a_step_add_up_by_weight() -> None:
    twice = learner(0, image_a(2.0), lambda row: 3.0 * row[0] + 1.0)
    halves = learner(1, image_a(2.0), lambda row: 3.0 * row[0] + 1.0, weight=0.5)
    both, mean = fitted(stack_of(ZERO, ZERO), [twice, halves])
    assert both.loss == pytest.approx(1.0)
    assert both.gradient_norms["image"] == pytest.approx(5.0)
    assert mean.loss == pytest.approx(0.5)
    assert mean.gradient_norms["image"] == pytest.approx(2.5)


def test_loss_and_norms_are_means_over_the_rows_own_steps() -> None:
    stack = stack_of(ZERO, ZERO)
    results = fitted(
        stack, [learner(0, image_a(1.0), steps=4, rate=0.1), learner(1, image_a(2.0), rate=0.1)]
    )
    # AdamW moves by the learning rate while the gradient stays the same.
    assert results[0].loss == pytest.approx(-(0.0 + 0.1 + 0.2 + 0.3) / 4, abs=1e-5)
    assert (results[0].steps, results[1].steps) == (4, 1)
    assert results[1].loss == 0.0
    assert results[1].gradient_norms["image"] == pytest.approx(2.0)


def test_fedprox_pulls_back_to_the_rows_own_start() -> None:
    # Minimum of (x - 1)^2 / 2 + mu / 2 (x - s)^2 is (1 + mu s) / (1 + mu).
    starts = (0.0, -0.5)
    free, held = stack_of(*[[s] * 4 for s in starts]), stack_of(*[[s] * 4 for s in starts])
    for stack, mu in ((free, 0.0), (held, 3.0)):
        fitted(stack, [learner(row, pull(1.0), steps=400) for row in (0, 1)], proximal=mu)
    torch.testing.assert_close(free.values, torch.ones(2, 4), atol=0.02, rtol=0)
    for row, start in enumerate(starts):
        expected = torch.full((4,), (1 + 3 * start) / 4)
        torch.testing.assert_close(held.values[row], expected, atol=0.02, rtol=0)


def reference(start: Sequence[float], loss: Loss, steps: int, rate: float, decay: float) -> Tensor:
    """torch's own AdamW on one row, clipped by torch's own function."""
    row = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.AdamW([row], rate, betas=fitting.BETAS, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(row).backward()
        torch.nn.utils.clip_grad_norm_([row], 1.0)
        optimizer.step()
    return row.detach()


def test_every_row_goes_the_way_of_an_optimizer_of_its_own() -> None:
    """Own steps, rate, clipping and weight decay; a row that is done is not touched."""
    starts = [(0.5, -1.0, 0.3, 2.0), (0.1, 0.2, -3.0, 0.4), (-2.0, 1.0, 1.0, 1.0)]
    places, steps, rates = (3.0, 0.4, -1.0), (7, 2, 5), (0.1, 0.02, 0.05)
    stack = stack_of(*starts)
    learners = [
        learner(row, pull(places[row]), steps=steps[row], rate=rates[row]) for row in range(3)
    ]
    fitted(stack, learners, weight_decay=0.3)
    for row in range(3):
        alone = reference(starts[row], pull(places[row]), steps[row], rates[row], 0.3)
        torch.testing.assert_close(stack.values[row], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("factors", [("A",), ("B",), ("A", "B")])
def test_only_the_phase_and_the_rows_towers_move(factors) -> None:
    start = (1.0, 2.0, 3.0, 4.0)  # image A, image B, text A, text B
    stack = stack_of(start, start, start)
    towers = [("image",), ("text",), BOTH]
    learners = [learner(row, pull(-1.0), steps=3, towers=towers[row]) for row in range(3)]
    results = fitted(stack, learners, factors, weight_decay=0.1, proximal=0.5)
    kinds = [("image", "A"), ("image", "B"), ("text", "A"), ("text", "B")]
    for row in range(3):
        moved = [stack.values[row, n] != start[n] for n in range(4)]
        assert moved == [tower in towers[row] and kind in factors for tower, kind in kinds]
        assert set(results[row].gradient_norms) == set(towers[row])


def test_a_row_that_is_not_finite_fails_alone() -> None:
    def run(second: Loss) -> tuple[Tensor, list[FitResult | TrainingError]]:
        stack = stack_of(ZERO, ZERO, ZERO)
        learners = [
            learner(0, pull(1.0), steps=4),
            learner(1, second, steps=3),
            learner(2, pull(2.0), steps=2),
        ]
        return stack.values, fitted(stack, learners)

    well, _ = run(pull(1.5))
    values, results = run(lambda row: row.sum() * math.inf)
    assert isinstance(results[1], TrainingError)
    assert results[1].reason == "loss-not-finite"
    assert "learning rate" in str(results[1])
    for row in (0, 2):
        assert isinstance(results[row], FitResult)
        assert torch.equal(values[row], well[row])


def test_a_factor_that_is_not_finite_fails_even_if_the_loss_is() -> None:
    stack = stack_of(ZERO, (0.0, 0.0, 0.0, math.nan))
    results = fitted(stack, [learner(row, image_a(1.0)) for row in (0, 1)])
    assert isinstance(results[0], FitResult)
    assert isinstance(results[1], TrainingError)


def test_an_error_leaves_nothing_that_wants_gradients() -> None:
    def fail(_row: Tensor) -> Tensor:
        raise MemoryError

    stack = stack_of(ZERO)
    with pytest.raises(MemoryError):
        fitted(stack, [learner(0, fail)])
    assert not any(stack.view(name).requires_grad for name in stack.factors)


def test_the_schedule_warms_up_every_round_and_falls_over_the_run() -> None:
    second = Schedule(peak=1.0, warmup=1, total=8, before=4)
    assert second.rate(0) == pytest.approx(0.5 * (0.05 + 0.95 * 0.5))  # half-way, half warm
    assert second.rate(2) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(0.75 * math.pi)))
    assert Schedule(peak=1.0, warmup=0, total=8, before=8).rate(0) == pytest.approx(0.05)
    assert [Schedule(peak=2.0, warmup=3).rate(s) for s in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_a_tower_that_runs_ahead_takes_smaller_steps() -> None:
    # Gradients of the rows: image 3 and text 1; image 1 and text 1 (level); image alone.
    losses = [
        lambda row: 3.0 * row[0] + row[2],
        lambda row: row[0] + row[2],
        lambda row: row[0],
    ]
    free, balanced = stack_of(ZERO, ZERO, ZERO), stack_of(ZERO, ZERO, ZERO)
    for stack, balance in ((free, 0.0), (balanced, 0.5)):
        results = fitted(
            stack, [learner(n, loss) for n, loss in enumerate(losses)], balance=balance
        )
    share = 1 - math.tanh(0.5 * 3)
    expected = free.values.clone()
    expected[0, :2] *= share
    torch.testing.assert_close(balanced.values, expected)
    assert results[0].discrepancy == {"image": pytest.approx(3), "text": pytest.approx(1 / 3)}
    assert results[1].discrepancy == {"image": 1.0, "text": 1.0}
    assert results[2].discrepancy == {}
