"""The low-rank layers of a cohort against PEFT's own, one stock model per adapter."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn

from shared.adapter import AdapterLayout, factor_name
from shared.config import LoraConfig
from shared.model.base import load_model
from shared.model.lora import AdaptedLinear, LowRank, Rows, inject, project
from shared.model.stack import AdapterStack

RANK, OTHER_RANK = 3, 2
CONFIG = LoraConfig(rank=RANK, alpha=2 * RANK, targets=["projection"])


class _Two(nn.Module):
    """Two layers with CLIP's names, neither of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(6, 10, bias=True)
        self.text_projection = nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.text_projection(torch.tanh(self.visual_projection(x)))


@dataclass
class Cohort:
    """One model of ours with a stack of adapters on it."""

    model: nn.Module
    layout: AdapterLayout
    layers: dict[str, AdaptedLinear]
    rows: Rows
    stack: AdapterStack

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows in the order of their adapters, in and out."""
        order = self.rows.arrange(counts)
        if order is None:
            return self.model(x)
        return self.model(x[order])[torch.argsort(order)]


def cohort_of(count: int, scale: float | Tensor = 2.0, rank: int = RANK) -> Cohort:
    torch.manual_seed(0)
    model, rows = _Two(), Rows()
    layout, layers = inject(model, CONFIG, rows)
    stack = AdapterStack(layout, count, torch.device("cpu"), rank)
    stack.values.copy_(torch.randn(stack.values.shape, generator=torch.Generator().manual_seed(3)))
    for module, layer in layers.items():
        a, b = (stack.view(factor_name(module, factor)) for factor in "AB")
        layer.low_rank = LowRank(a, b, scale)
    return Cohort(model, layout, layers, rows, stack)


def stock_of(cohort: Cohort, row: int, alpha: float, merged: dict[str, Tensor] | None) -> nn.Module:
    """PEFT's model with the same frozen weights and one row's factors as adapter ``own``."""
    torch.manual_seed(0)
    stock = _Two()
    ranks = {"own": cohort.stack.rank} | ({"shared": RANK} if merged else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, rank in ranks.items():
            targets = ["visual_projection", "text_projection"]
            inject_adapter_in_model(
                PeftConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), stock, name
            )
    for path in cohort.layers:
        module = stock.get_submodule(path)
        module.set_adapter(list(ranks))
        module.set_scale("own", alpha)
        for factor in "AB":
            own = getattr(module, f"lora_{factor}")
            own["own"].weight.data = cohort.stack.view(factor_name(path, factor))[row].clone()
            if merged:
                own["shared"].weight.data = merged[factor_name(path, factor)]
    return stock


def shared_factors(layout: AdapterLayout) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {
        name: 0.3 * torch.randn(layout.shape_of(name), generator=generator)
        for name in layout.names()
    }


@pytest.mark.parametrize("factors", ["A", "B", "AB"])
@pytest.mark.parametrize("counts", [(5,), (2, 2, 2), (3, 1, 4), (1, 3, 1, 3), (2, 0, 4)])
@pytest.mark.parametrize("on", ["frozen", "shared", "mixed"])
def test_equals_peft_forward_and_backward(on: str, counts: tuple[int, ...], factors: str) -> None:
    alphas = [1.0] * len(counts)
    scale: float | Tensor = 2.0
    if on == "mixed":
        alphas = [0.25 * (row + 1) for row in range(len(counts))]
        scale = 2.0 * torch.tensor(alphas).reshape(-1, 1, 1)
    cohort = cohort_of(len(counts), scale, OTHER_RANK if on == "shared" else RANK)
    merged = shared_factors(cohort.layout) if on == "shared" else None
    for path, layer in cohort.layers.items():
        if merged:
            a, b = (merged[factor_name(path, factor)] for factor in "AB")
            layer.in_use = layer.frozen.weight + 2.0 * b @ a
    cohort.stack.train(tuple(factors))
    x = torch.randn(sum(counts), 7, 6, generator=torch.Generator().manual_seed(1))
    given_ = x.clone().requires_grad_()
    output = cohort.forward(given_, counts)
    output.square().sum().backward()
    for row, part in enumerate(x.split(counts)):
        stock = stock_of(cohort, row, alphas[row], merged)
        for name, parameter in stock.named_parameters():
            parameter.requires_grad_(any(f"lora_{f}.own" in name for f in factors))
        alone = part.clone().requires_grad_()
        expected = stock(alone)
        expected.square().sum().backward()
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(output.split(counts)[row], expected, **close)
        torch.testing.assert_close(given_.grad.split(counts)[row], alone.grad, **close)
        for path in cohort.layers:
            for factor in factors:
                wanted = getattr(stock.get_submodule(path), f"lora_{factor}")["own"].weight.grad
                found = cohort.stack.view(factor_name(path, factor)).grad[row]
                torch.testing.assert_close(found, torch.zeros_like(found) + wanted, **close)
    untrained = [n for n in cohort.layout.names() if n.split(".lora_")[1][0] not in factors]
    assert all(cohort.stack.view(name).grad is None for name in untrained)
    assert all(parameter.grad is None for parameter in cohort.model.parameters())


def test_features_without_positions_and_inputs_without_gradient() -> None:
    cohort = cohort_of(2)
    cohort.stack.train(("B",))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    found = cohort.forward(x, [1, 2])
    expected = [stock_of(cohort, row, 1.0, None)(part) for row, part in enumerate(x.split([1, 2]))]
    torch.testing.assert_close(found, torch.cat(expected))
    found.sum().backward()
    assert float(cohort.stack.gradients.abs().sum()) > 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
def test_rows_of_all_adapters_are_arranged_by_count_and_none_is_lost(counts: list[int]) -> None:
    rows = Rows()
    order = rows.arrange(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if order is not None:
        assert sorted(order.tolist()) == list(range(sum(counts)))
        owner = owner[order]
    at = 0
    for run in rows.runs:
        adapters = torch.arange(len(counts))[run.adapters]
        assert len(adapters) == run.count
        assert run.start == at
        assert {counts[number] for number in adapters.tolist()} == {run.each}
        wanted = adapters.repeat_interleave(run.each)
        assert torch.equal(owner[at : at + run.count * run.each], wanted)
        at += run.count * run.each
    assert at == sum(counts)
    assert len(rows.runs) == len({count for count in counts if count})  # one product per count


def test_layers_with_one_input_are_one_product() -> None:
    """Adapted and plain layers side by side, as queries, keys and values are."""
    torch.manual_seed(2)
    rows = Rows()
    plain = nn.Linear(6, 5)
    adapted = [AdaptedLinear(nn.Linear(6, m), rows) for m in (4, 3)]
    leaves = []
    for layer, rank in zip(adapted, (2, 3), strict=True):
        a = torch.randn(2, rank, 6, requires_grad=True)
        b = torch.randn(2, len(layer.weight), rank, requires_grad=True)
        layer.low_rank = LowRank(a, b, 0.5)
        leaves += [a, b]
    rows.arrange([2, 2])
    layers = [adapted[0], plain, adapted[1]]
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    x = torch.randn(4, 3, 6)
    found = []
    for way in (
        lambda y: project(y, layers, weight, bias),
        lambda y: torch.cat([layer(y) for layer in layers], -1),
    ):
        given_ = x.clone().requires_grad_()
        output = way(given_)
        found.append([output, *torch.autograd.grad(output.square().sum(), [given_, *leaves])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_fused_optimizer_step_changes_the_function() -> None:
    cohort = cohort_of(2)
    cohort.stack.train(("B",))
    parameters = []
    for row in range(2):
        for _, columns in cohort.stack.slices(("B",), ("image", "text")):
            parameter = cohort.stack.values[row, columns].detach()
            parameter.grad = cohort.stack.gradients[row, columns]
            parameters.append(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
    x = torch.ones(2, 6)
    results = []
    for _ in range(3):
        cohort.stack.gradients.zero_()
        result = cohort.forward(x, [1, 1])
        result.sum().backward()
        optimizer.step()
        results.append(result.sum(1).detach())
    cohort.stack.train(())
    results.append(cohort.forward(x, [1, 1]).sum(1))
    for before, after in pairwise(results):
        assert (after < before).all()


def test_scoring_in_inference_mode_does_not_spoil_training() -> None:
    cohort = cohort_of(2)
    with torch.inference_mode():
        cohort.forward(torch.ones(2, 6), [1, 1])
    cohort.stack.train(("A",))
    cohort.forward(torch.ones(2, 6), [1, 1]).sum().backward()
    assert float(cohort.stack.gradients.abs().sum()) > 0


def test_bfloat16_gives_the_gradient_of_float32_within_its_precision() -> None:
    gradients = []
    for precision in (torch.float32, torch.bfloat16):
        cohort = cohort_of(2)
        cohort.model.to(precision)
        cohort.stack.train(("A", "B"))
        x = torch.linspace(-1, 1, 24).reshape(4, 6).to(precision)
        cohort.forward(x, [1, 3]).float().square().sum().backward()
        gradients.append(cohort.stack.gradients.clone())
    assert gradients[1].dtype == torch.float32
    assert not torch.equal(*gradients)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=1)
    assert (cosine > 0.999).all()


def test_injecting_leaves_the_global_generator_alone() -> None:
    model = _Two()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    inject(model, LoraConfig(rank=2, targets=["projection"]), Rows())
    assert torch.equal(torch.rand(1), expected)


def test_layout_has_a_fixed_order_and_both_towers(clip_folder) -> None:
    model, _ = load_model(clip_folder)
    layout, layers = inject(model, LoraConfig(rank=4, alpha=8), Rows())
    modules = [layer.module for layer in layout.layers]
    assert list(layers) == modules
    assert len(modules) == 2 * (2 * 6) + 2
    assert modules[12] == "visual_projection"
    assert modules[-1] == "text_projection"
    assert [layer.tower for layer in layout.layers] == ["image"] * 13 + ["text"] * 13
    fc1 = next(layer for layer in layout.layers if layer.module.endswith("0.mlp.fc1"))
    assert (fc1.outputs, fc1.inputs) == (48, 32)
    assert layout.scaling == 2.0
    assert not any(p.requires_grad for p in model.parameters())
