"""The merged LoRA layer against PEFT's own, and which layers are adapted."""

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import nn

from shared.config import LoraConfig
from shared.errors import ConfigError
from shared.model.base import load_model
from shared.model.lora import MergedLinear, find_targets, inject

RANK = 3


class _Two(nn.Module):
    """Two layers with CLIP's names, neither of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(6, 10, bias=True)
        self.text_projection = nn.Linear(10, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.text_projection(torch.tanh(self.visual_projection(x)))


def _fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def arms() -> tuple[nn.Module, nn.Module, dict[str, MergedLinear]]:
    """The same model with PEFT's layers and with ours, with the same random factors."""
    torch.manual_seed(0)
    ours = _Two()
    stock = copy.deepcopy(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for which, rank in (("shared", RANK), ("personal", 2)):
            peft = PeftConfig(
                r=rank, lora_alpha=2 * rank, target_modules=["visual_projection", "text_projection"]
            )
            inject_adapter_in_model(peft, stock, which)
    config = LoraConfig(rank=RANK, alpha=2 * RANK, targets=["projection"])
    _, layers = inject(ours, config, personal_rank=2)
    _fill(stock)
    _fill(ours)
    return stock, ours, layers


def _activate(stock: nn.Module, layers: dict[str, MergedLinear], *, personal: bool) -> None:
    for module in stock.modules():
        if hasattr(module, "set_adapter"):
            module.set_adapter(["shared", "personal"] if personal else ["shared"])
    for layer in layers.values():
        layer.use_shared, layer.personal_alpha = True, 1.0 if personal else 0.0


@pytest.mark.parametrize(
    ("personal", "trained"), [(False, "shared"), (True, "shared"), (True, "personal")]
)
@pytest.mark.parametrize("factors", ["A", "B", "AB"])
def test_equals_peft_forward_and_backward(arms, personal: bool, trained: str, factors: str) -> None:
    stock, ours, layers = arms
    _activate(stock, layers, personal=personal)
    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1))
    gradients = []
    for model in (stock, ours):
        for name, p in model.named_parameters():
            p.requires_grad_(any(f"lora_{f}.{trained}" in name for f in factors))
        given = x.clone().requires_grad_()
        result = model(given)
        result.square().sum().backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        gradients.append({"output": result.detach(), "input": given.grad, **found})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 + 2 * len(factors)
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-4)


def test_a_fused_optimizer_step_changes_the_function(arms) -> None:
    _, ours, layers = arms
    _activate(nn.Identity(), layers, personal=False)
    trained = [layer.factor("shared", "B").requires_grad_() for layer in layers.values()]
    optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)
    x = torch.ones(1, 6)
    results = []
    for _ in range(3):
        result = ours(x)
        result.sum().backward()
        optimizer.step()
        results.append(float(result.sum().detach()))
    assert results[0] > results[1] > results[2]
    for parameter in trained:
        parameter.requires_grad_(False)
    assert float(ours(x).sum()) < results[2]


def test_scoring_in_inference_mode_does_not_spoil_training(arms) -> None:
    _, ours, layers = arms
    _activate(nn.Identity(), layers, personal=False)
    with torch.inference_mode():
        ours(torch.ones(1, 6))
    layers["text_projection"].factor("shared", "A").requires_grad_()
    ours(torch.ones(1, 6)).sum().backward()
    assert layers["text_projection"].factor("shared", "A").grad is not None


def test_removing_residual_and_adapters_gives_the_frozen_weight_bit_for_bit(arms) -> None:
    _, _, layers = arms
    layer = layers["visual_projection"]
    before = layer.base_layer.weight.detach().clone()
    _activate(nn.Identity(), layers, personal=True)
    layer.set_residual((torch.randn(10, 5), torch.randn(5, 6)))
    assert not torch.equal(layer.weight_in_use(), before)
    layer.set_residual(None)
    layer.use_shared, layer.personal_alpha = False, 0.0
    assert torch.equal(layer.weight_in_use(), before)
    assert torch.equal(layer.base_layer.weight, before)


def test_autocast_gives_the_gradient_of_float32_within_its_precision(arms) -> None:
    _, ours, layers = arms
    _activate(nn.Identity(), layers, personal=False)
    b = layers["visual_projection"].factor("shared", "B").requires_grad_()
    gradients = []
    for on in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            result = ours(torch.linspace(-1, 1, 12).reshape(2, 6))
        result.float().square().sum().backward()
        assert b.grad is not None
        gradients.append(b.grad.clone().flatten())
        b.grad = None
    assert gradients[1].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert cosine > 0.999


def test_injecting_leaves_the_global_generator_alone() -> None:
    model = _Two()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    inject(model, LoraConfig(rank=2, targets=["projection"]), 2)
    assert torch.equal(torch.rand(1), expected)


def test_layout_has_a_fixed_order_and_both_towers(clip_folder) -> None:
    model, _ = load_model(clip_folder)
    layout, _ = inject(model, LoraConfig(rank=4, alpha=8), 4)
    modules = [layer.module for layer in layout.layers]
    assert len(modules) == 2 * (2 * 6) + 2
    assert modules[12] == "visual_projection"
    assert modules[-1] == "text_projection"
    assert [layer.tower for layer in layout.layers] == ["image"] * 13 + ["text"] * 13
    fc1 = next(layer for layer in layout.layers if layer.module.endswith("0.mlp.fc1"))
    assert (fc1.outputs, fc1.inputs) == (48, 32)
    assert layout.scaling == 2.0
    assert not any(p.requires_grad for p in model.parameters())


def test_siglip_keeps_its_pooling_head_frozen(siglip_folder) -> None:
    model, _ = load_model(siglip_folder)
    targets = find_targets(model, ["attention", "mlp", "projection"], "all")
    assert len(targets) == 2 * (2 * 6)
    assert not any("head" in target for target in targets)


def test_targets_by_name_and_the_top_layers(clip_folder) -> None:
    model, _ = load_model(clip_folder)
    targets = find_targets(model, ["q_proj", "text_projection"], "top:1")
    assert targets == [
        "vision_model.encoder.layers.1.self_attn.q_proj",
        "text_model.encoder.layers.1.self_attn.q_proj",
        "text_projection",
    ]


@pytest.mark.parametrize(
    ("targets", "layers", "message"),
    [
        (["q_porj"], "all", r"'q_porj' is not a linear layer.*did you mean 'q_proj'"),
        (["atention"], "all", r"did you mean 'attention'"),
        (["attention"], "last:2", r"expected 'all' or 'top:N'"),
    ],
)
def test_names_the_target_that_is_wrong(clip_folder, targets, layers, message) -> None:
    model, _ = load_model(clip_folder)
    with pytest.raises(ConfigError, match=message):
        find_targets(model, targets, layers)


def test_numpy_is_enough_to_know_the_merged_weight(arms) -> None:
    _, _, layers = arms
    layer = layers["text_projection"]
    layer.use_shared, layer.personal_alpha = True, 0.25
    w, a, b, pa, pb = (
        t.detach().numpy()
        for t in (
            layer.base_layer.weight,
            layer.factor("shared", "A"),
            layer.factor("shared", "B"),
            layer.factor("personal", "A"),
            layer.factor("personal", "B"),
        )
    )
    expected = w + 2.0 * b @ a + 0.25 * 2.0 * pb @ pa
    np.testing.assert_allclose(
        layer.weight_in_use().detach().numpy(), expected, rtol=1e-5, atol=1e-5
    )
