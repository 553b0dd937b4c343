"""CreamFL's two losses, with numbers that can be checked by hand."""

import math

import torch

from shared.objectives.creamfl import inter_modal, intra_modal

EYE = torch.eye(2)


def test_inter_modal_is_the_cross_entropy_of_the_counterpart() -> None:
    # Against e_0, e_1 at temperature 1/2 the feature e_0 has logits (2, 0): -log(e^2 / (e^2 + 1)).
    right = inter_modal(EYE[:1], EYE, torch.tensor([0]), temperature=0.5)
    wrong = inter_modal(EYE[:1], EYE, torch.tensor([1]), temperature=0.5)
    torch.testing.assert_close(right, torch.tensor([math.log(1 + math.exp(-2))]))
    torch.testing.assert_close(wrong - right, torch.tensor([2.0]))


def test_inter_modal_looks_at_all_items_not_at_the_batch_alone() -> None:
    # Three items whose common features are all alike: chance among three, whatever the batch.
    losses = inter_modal(EYE, torch.ones(3, 2), torch.tensor([0, 2]), temperature=0.5)
    torch.testing.assert_close(losses, torch.full((2,), math.log(3)))


def test_intra_modal_is_moons_contrast() -> None:
    # v.g = 1 and v.old = 0 at temperature 1/2: -log(e^2 / (e^2 + e^0)); the other way round +2.
    near = intra_modal(EYE[:1], EYE[:1], EYE[1:], temperature=0.5)
    far = intra_modal(EYE[:1], EYE[1:], EYE[:1], temperature=0.5)
    torch.testing.assert_close(near, torch.tensor([math.log(1 + math.exp(-2))]))
    torch.testing.assert_close(far - near, torch.tensor([2.0]))


def test_intra_modal_of_a_site_that_is_where_it_shall_be_is_log_two() -> None:
    losses = intra_modal(EYE, EYE, EYE, temperature=0.5)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)))


def test_gradients_pull_to_the_common_feature() -> None:
    angle = torch.tensor(0.3, requires_grad=True)
    feature = torch.stack([angle.cos(), angle.sin()])[None]
    (
        inter_modal(feature, EYE, torch.tensor([1]), 0.5)
        + intra_modal(feature, EYE[1:], EYE[:1], 0.5)
    ).backward()
    assert angle.grad is not None
    assert float(angle.grad) < 0  # a longer way towards e_1 lowers both
