"""Balancing the towers, with numbers to check by hand."""

import math

import pytest
import torch

from client.balance import coefficients, discrepancy, ratios


def test_the_tower_that_runs_ahead_is_slowed_down_and_the_other_is_not() -> None:
    # Rows: image three times text; level; text twice image.
    norms = {"image": torch.tensor([3.0, 2.0, 1.0]), "text": torch.tensor([1.0, 2.0, 2.0])}
    assert ratios(norms)["image"].tolist() == [3.0, 1.0, 0.5]
    assert ratios(norms)["text"].tolist() == [pytest.approx(1 / 3), 1.0, 2.0]
    found = coefficients(norms, 0.5)
    assert found["image"].tolist() == [pytest.approx(1 - math.tanh(1.5)), 1.0, 1.0]
    assert found["text"].tolist() == [1.0, 1.0, pytest.approx(1 - math.tanh(1.0))]


def test_without_strength_nothing_changes() -> None:
    norms = {"image": torch.tensor([3.0]), "text": torch.tensor([1.0])}
    assert all(k.tolist() == [1.0] for k in coefficients(norms, 0.0).values())


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_norm_that_says_nothing_slows_nobody_down(bad: float) -> None:
    norms = {"image": torch.tensor([5.0, 2.0]), "text": torch.tensor([bad, 1.0])}
    found = coefficients(norms, 0.5)
    assert found["image"].tolist() == [1.0, pytest.approx(1 - math.tanh(1.0))]
    assert found["text"].tolist() == [1.0, 1.0]


def test_one_tower_has_nothing_to_be_compared_with() -> None:
    assert coefficients({"image": torch.tensor([5.0])}, 0.5)["image"].tolist() == [1.0]
    assert discrepancy({"image": torch.tensor([5.0])}) == {}
    assert discrepancy({"image": torch.tensor([5.0, 4.0]), "text": torch.zeros(2)}) == {}


def test_the_discrepancies_of_many_steps_are_each_others_inverse() -> None:
    # Ratios 8 and 1/2: the geometric mean is 2; plain means would be 4.25 and 1.06.
    norms = {"image": torch.tensor([8.0, 1.0]), "text": torch.tensor([1.0, 2.0])}
    found = discrepancy(norms)
    assert found == {"image": pytest.approx(2.0), "text": pytest.approx(0.5)}


def test_slowing_a_tower_down_is_a_smaller_learning_rate_for_it() -> None:
    """What the fit does with a coefficient: AdamW's step and decay are both in proportion."""
    start = torch.tensor([0.5, -0.3])
    ends = []
    for rate in (0.1, 0.1 * 0.25):
        row = start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([row], rate, weight_decay=0.2)
        row.square().sum().backward()
        optimizer.step()
        ends.append(row.detach())
    torch.testing.assert_close(torch.lerp(start, ends[0], 0.25), ends[1])
