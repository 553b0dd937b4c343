"""Losses with numbers that can be checked by hand."""

import math

import pytest
import torch

from shared.objectives import OBJECTIVES
from shared.objectives.anchor import anchor
from shared.objectives.crd import crd
from shared.objectives.infonce import infonce, pair_targets
from shared.objectives.labels import label_similarity
from shared.objectives.matching import matching
from shared.objectives.prompts import prevalence_logit, prompt_loss
from shared.objectives.relational import relational

EYE = torch.eye(2)


def test_infonce_of_two_aligned_pairs() -> None:
    # logits are 1 on the diagonal and 0 beside it: -log(e / (e + 1)) both ways
    losses = infonce(EYE, EYE, torch.eye(2), scale=1.0)
    torch.testing.assert_close(losses, torch.full((2,), math.log(1 + math.exp(-1))))


def test_infonce_at_chance_is_log_n() -> None:
    same = torch.ones(4, 1)
    losses = infonce(same, same, torch.eye(4), scale=10.0)
    torch.testing.assert_close(losses, torch.full((4,), math.log(4)))


def test_identical_texts_are_positives_of_each_other() -> None:
    # Three records, the first two with one text; v_i = e_i, so image 0 gives logits (1, 0, 0).
    # Its targets are (1/2, 1/2, 0): -(1/2)(1 - log(e + 2)) - (1/2)(0 - log(e + 2)).
    targets = pair_targets(
        torch.tensor([7, 7, 9]), torch.zeros(3, 0), torch.zeros(3).bool(), kappa=0.0
    )
    assert targets.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    losses = infonce(torch.eye(3), torch.eye(3), targets, scale=1.0)
    expected = math.log(math.e + 2) - 0.5
    torch.testing.assert_close(losses[0], torch.tensor(expected))


def test_a_pair_with_identical_text_is_no_negative() -> None:
    # If the softmax already equals the soft targets, the loss is their entropy and has no pull.
    text = torch.tensor([[1.0], [1.0]], requires_grad=True)
    targets = pair_targets(torch.tensor([3, 3]), torch.zeros(2, 0), torch.zeros(2).bool(), 0.0)
    infonce(torch.ones(2, 1), text, targets, scale=5.0).sum().backward()
    assert text.grad is not None
    torch.testing.assert_close(text.grad, torch.zeros(2, 1))


def test_kappa_makes_records_with_like_labels_partial_positives() -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    labelled = torch.tensor([True, True, False])
    targets = pair_targets(torch.tensor([0, 1, 2]), labels, labelled, kappa=0.5)
    half = 0.5 / math.sqrt(2)
    torch.testing.assert_close(
        targets, torch.tensor([[1, half, 0], [half, 1, 0], [0, 0, 1]], dtype=torch.float32)
    )


def test_label_similarity_is_the_cosine_and_two_normals_are_alike() -> None:
    first = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([[1 / math.sqrt(2), 0.0], [0.0, 1.0]])
    torch.testing.assert_close(label_similarity(first, second), expected)


def test_prompt_loss_of_an_uninformative_feature_is_the_entropy_of_the_prior() -> None:
    labels = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    prior = prevalence_logit(labels)
    torch.testing.assert_close(prior, torch.tensor([math.log(1 / 3)]))
    losses = prompt_loss(torch.zeros(4, 2), torch.ones(1, 2), prior, labels, scale=10.0)
    torch.testing.assert_close(losses, -torch.tensor([math.log(0.25), *[math.log(0.75)] * 3]))


def test_prompt_loss_adds_findings_up() -> None:
    features, directions = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    losses = prompt_loss(
        features, directions, torch.zeros(2), torch.tensor([[1.0, 0.0]]), scale=2.0
    )
    torch.testing.assert_close(losses, torch.tensor([math.log(1 + math.exp(-1)) + math.log(2)]))


def test_prevalence_stays_away_from_certainty() -> None:
    extremes = prevalence_logit(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(extremes, torch.tensor([math.log(99), -math.log(99)]))


def test_matching_wants_the_softmax_of_label_similarity() -> None:
    # One image with finding 0; texts with finding 0 and with finding 1. Logits are equal, so the
    # cross-entropy is log 2 whatever the targets; each text has one image: no choice, no loss.
    to_text, to_image = matching(
        torch.ones(1, 1), torch.ones(2, 1), torch.tensor([[1.0, 0.0]]), torch.eye(2), scale=3.0
    )
    torch.testing.assert_close(to_text, torch.tensor([math.log(2)]))
    torch.testing.assert_close(to_image, torch.zeros(2))


def test_matching_pulls_towards_like_labels() -> None:
    image = torch.tensor([[0.1, 0.0]], requires_grad=True)
    to_text, _ = matching(image, torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.eye(2), 1.0)
    to_text.sum().backward()
    assert image.grad is not None
    assert image.grad[0, 0] < 0 < image.grad[0, 1]


def test_anchor_is_half_the_squared_distance() -> None:
    torch.testing.assert_close(
        anchor(EYE, torch.tensor([[1.0, 0.0], [1.0, 0.0]])), torch.tensor([0.0, 1.0])
    )


def test_relational_is_zero_for_the_teacher_and_for_rotations() -> None:
    teacher = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator()), dim=1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator()))[0]
    torch.testing.assert_close(relational(teacher, teacher, 10.0), torch.zeros(5))
    torch.testing.assert_close(
        relational(teacher @ rotation, teacher, 10.0), torch.zeros(5), atol=1e-5, rtol=0
    )


def test_relational_of_three_records() -> None:
    # Teacher: all alike, so 1/2 on each of the others. Student: 0 and 1 together, 2 opposite;
    # sharpness 5 for scale 10, so record 0 has softmax(5, -5) over (1, 2).
    student = torch.tensor([[1.0], [1.0], [-1.0]])
    losses = relational(student, torch.ones(3, 1), scale=10.0)
    p = 1 / (1 + math.exp(-10))
    expected = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert losses[0].item() == pytest.approx(expected, rel=1e-5)
    assert losses[2].item() == pytest.approx(0.0, abs=1e-6)


def test_relational_needs_three_records() -> None:
    assert relational(EYE, EYE.flip(0), 10.0).tolist() == [0.0, 0.0]


def test_every_objective_is_listed() -> None:
    assert list(OBJECTIVES) == ["infonce", "prompts", "matching", "relational", "anchor", "crd"]


def test_crd_of_two_pairs() -> None:
    # The teacher is certain to (p, 1 - p) with logits scale / 2 * (1, -1) = (1, -1) at scale 2; the
    # student, with all features alike, says 1/2 each. Both directions alike: T^2 / 2 * 2 * KL.
    teacher = torch.tensor([[1.0], [-1.0]])
    losses = crd(torch.ones(2, 1), torch.ones(2, 1), teacher, teacher, scale=2.0, temperature=2.0)
    p = 1 / (1 + math.exp(-2))
    gap = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    torch.testing.assert_close(losses, torch.full((2,), 4 * gap))


def test_crd_is_zero_for_the_teacher_and_does_not_move_it() -> None:
    side = EYE.clone().requires_grad_()
    teacher = EYE.clone().requires_grad_()
    losses = crd(side, EYE, teacher, EYE, scale=5.0)
    torch.testing.assert_close(losses.detach(), torch.zeros(2))
    losses.sum().backward()
    assert teacher.grad is None
