"""Attention that keeps its weights against torch's own, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shared.model import attention
from shared.model.attention import attend

HEADS, WIDTH = 3, 12
SCALE = 0.4


def reference(joined: Tensor, *, causal: bool) -> Tensor:
    """The formula, one head after the other."""
    query, key, value = joined.chunk(3, dim=-1)
    mixed = []
    for q, k, v in zip(*(part.chunk(HEADS, dim=-1) for part in (query, key, value)), strict=True):
        scores = SCALE * q @ k.mT
        if causal:
            length = scores.shape[-1]
            later = torch.ones(length, length).triu(1).bool()
            scores = scores.masked_fill(later, -torch.inf)
        mixed.append(functional.softmax(scores, -1) @ v)
    return torch.cat(mixed, -1)


def joined_of(length: int, precision: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(4, length, 3 * WIDTH, generator=generator).to(precision)


def both_ways(given: Tensor, way, *, causal: bool) -> tuple[Tensor, Tensor]:
    leaf = given.clone().requires_grad_()
    output = way(leaf, causal=causal)
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (output.float() * weights).sum().backward()
    assert leaf.grad is not None
    return output.detach(), leaf.grad


def ours(joined: Tensor, *, causal: bool) -> Tensor:
    return attend(joined, HEADS, SCALE, causal=causal)


def kept(joined: Tensor, *, causal: bool) -> Tensor:
    return attention._ShortAttention.apply(joined, HEADS, SCALE, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 7, 17])
@pytest.mark.parametrize("way", [ours, kept])
def test_equals_the_formula(way, length: int, causal: bool) -> None:
    given = joined_of(length, torch.float32)
    expected = both_ways(given, reference, causal=causal)
    for found, wanted in zip(both_ways(given, way, causal=causal), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_is_the_formula_within_its_precision(causal: bool) -> None:
    given = joined_of(17, torch.bfloat16)
    expected = both_ways(given.float(), reference, causal=causal)
    for found, wanted in zip(both_ways(given, ours, causal=causal), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert float((found.float() - wanted).norm() / wanted.norm()) < 0.01


def test_training_in_bfloat16_on_cpus_takes_the_quick_way_and_scoring_torchs(monkeypatch) -> None:
    taken = []
    own = attention._ShortAttention.apply
    monkeypatch.setattr(
        attention._ShortAttention, "apply", lambda *a: taken.append(a[0].dtype) or own(*a)
    )
    for precision in (torch.bfloat16, torch.float32):
        given = joined_of(5, precision)
        ours(given.clone().requires_grad_(), causal=True)
        with torch.no_grad():
            ours(given.clone().requires_grad_(), causal=True)
    assert taken == [torch.bfloat16]


def test_a_later_position_changes_nothing_of_a_causal_one() -> None:
    given = joined_of(6, torch.bfloat16).requires_grad_()
    other = given.detach().clone()
    other[:, 4:] += 1.0
    one, two = ours(given, causal=True), ours(other.requires_grad_(), causal=True)
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.equal(one[:, 4:], two[:, 4:])
