"""A cohort's adapters as one matrix: what goes in comes out, and rows do not touch."""

import numpy as np
import pytest
import torch

from shared.adapter import AdapterLayout, LayerShape
from shared.errors import AdapterMismatchError
from shared.model.stack import AdapterStack

LAYOUT = AdapterLayout(
    (
        LayerShape("v.q", "image", 3, 4),
        LayerShape("v.k", "image", 5, 4),
        LayerShape("t.q", "text", 2, 6),
    ),
    rank=2,
    scaling=2.0,
)
CPU = torch.device("cpu")
BOTH = ("image", "text")


def adapter(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(LAYOUT.shape_of(n)).astype(np.float32) for n in LAYOUT.names()}


def filled(count: int = 3) -> AdapterStack:
    stack = AdapterStack(LAYOUT, count, CPU)
    for row in range(count):
        stack.put(row, adapter(row))
    return stack


def test_every_row_gives_back_what_was_put() -> None:
    stack = filled()
    assert len(stack) == 3
    for row in range(3):
        found = stack.read(row)
        assert set(found) == set(LAYOUT.names())
        for name, array in adapter(row).items():
            assert np.array_equal(found[name], array)
            assert found[name].dtype == np.float32
            assert found[name].flags.c_contiguous
            assert np.array_equal(stack.view(name)[row].numpy(), array)


def test_reads_only_what_is_asked_for() -> None:
    stack = filled()
    assert set(stack.read(1, ("B",), ("text",))) == {"base_model.model.t.q.lora_B.weight"}
    assert set(stack.read(1, ("A",))) == set(LAYOUT.names(("A",)))
    assert stack.read(1, (), BOTH) == {}


def test_a_fresh_stack_changes_nothing_and_what_is_missing_stays_zero() -> None:
    stack = AdapterStack(LAYOUT, 2, CPU)
    assert not stack.values.any()
    name = LAYOUT.names()[0]
    stack.put(1, {name: adapter(1)[name]})
    assert not stack.values[0].any()
    assert int(stack.values[1].count_nonzero()) == adapter(1)[name].size


def test_what_is_read_is_a_copy() -> None:
    stack = filled()
    found = stack.read(0)
    before = {name: array.copy() for name, array in found.items()}
    stack.values.add_(1.0)
    assert all(np.array_equal(found[name], before[name]) for name in found)


def test_what_is_put_is_copied() -> None:
    given = adapter(1)
    stack = AdapterStack(LAYOUT, 1, CPU)
    stack.put(0, given)
    stack.values.add_(1.0)
    assert all(np.array_equal(array, adapter(1)[name]) for name, array in given.items())


def test_slices_are_all_columns_of_a_kind_and_joined_where_they_touch() -> None:
    stack = filled()
    sizes = {name: int(np.prod(LAYOUT.shape_of(name))) for name in LAYOUT.names()}
    for factors in (("A",), ("B",), ("A", "B")):
        for towers in (("image",), ("text",), BOTH):
            found = stack.slices(factors, towers)
            wanted = [n for n in LAYOUT.names(factors) if LAYOUT.tower_of(n) in towers]
            columns = [c for _, part in found for c in range(part.start, part.stop)]
            assert len(columns) == len(set(columns)) == sum(sizes[n] for n in wanted)
            for name in wanted:
                place = stack.factors[name]
                assert set(range(place.start, place.stop)) <= set(columns)
            assert len(found) == len(towers)  # one slice per tower
            assert [tower for tower, _ in found] == list(towers)


def test_only_what_is_trained_gets_a_gradient_and_it_lies_in_the_matrix() -> None:
    stack = filled()
    stack.train(("B",))
    for name in LAYOUT.names():
        assert stack.view(name).requires_grad == (".lora_B" in name)
    name = LAYOUT.names(("B",))[1]
    place = stack.factors[name]
    (stack.view(name)[1] * 3.0).sum().backward()
    expected = torch.zeros_like(stack.gradients)
    expected[1, place.start : place.stop] = 3.0
    assert torch.equal(stack.gradients, expected)
    stack.train(())
    assert not any(stack.view(name).requires_grad for name in LAYOUT.names())
    assert stack.gradients.numel() == 0


def test_another_rank_and_what_does_not_fit() -> None:
    stack = AdapterStack(LAYOUT, 1, CPU, rank=3)
    assert stack.view("base_model.model.v.q.lora_A.weight").shape == (1, 3, 4)
    with pytest.raises(AdapterMismatchError, match="adapters of rank 3"):
        stack.put(0, adapter(0))
    with pytest.raises(AdapterMismatchError, match="other"):
        filled().put(0, {"other": np.zeros((2, 4), np.float32)})
