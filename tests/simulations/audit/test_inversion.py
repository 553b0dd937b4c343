"""Inversion: exact where algebra says so, and nothing through the secure sum or through noise."""

import numpy as np
import pytest
import torch

from client.patient_steps import PatientSteps
from client.training import fresh_adapter
from shared.adapter import SharedAdapter, factor_of
from shared.config import LoraConfig, ModelConfig
from shared.errors import InputError
from shared.model.encoder import DualEncoder
from shared.results import DatasetOrigin
from simulations.audit.canaries import draw_pairs, references
from simulations.audit.exposure import Victims, exposures, secure_sum
from simulations.audit.inversion import (
    cosine,
    normed_input,
    pooled_direction,
    read_token,
    share_inside,
    spanned,
)


def lora_gradients(inputs, rank=4, outputs=24, seed=0):
    """Gradients of A of a linear layer by autograd."""
    torch.manual_seed(seed)
    x = torch.tensor(inputs)
    a = torch.randn(rank, x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.randn(outputs, rank, dtype=x.dtype) * 0.1
    y = x @ torch.randn(x.shape[1], outputs, dtype=x.dtype) + (x @ a.T) @ b.T
    (y.square() * torch.randn_like(y)).sum().backward()
    return a.grad.numpy()


def test_one_input_is_every_row_and_few_inputs_are_in_the_span():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, 40))
    one = pooled_direction(lora_gradients(inputs[:1]))
    assert abs(one @ inputs[0]) / np.linalg.norm(inputs[0]) == pytest.approx(1.0)
    basis = spanned(lora_gradients(inputs))
    assert len(basis) == 3
    assert np.allclose(share_inside(inputs, basis), 1.0)
    many = spanned(lora_gradients(rng.standard_normal((64, 40))))
    assert share_inside(inputs, many).mean() < 0.3


def test_the_norm_before_the_layer_gives_sign_and_length_away():
    rng = np.random.default_rng(1)
    for _ in range(20):
        state = rng.standard_normal(48)
        gain, bias = 1 + 0.3 * rng.standard_normal(48), 0.2 * rng.standard_normal(48)
        true = gain * (state - state.mean()) / state.std() + bias
        direction = rng.choice([-1, 1]) * true / np.linalg.norm(true)
        np.testing.assert_allclose(normed_input(direction, gain, bias), true, rtol=1e-9)


def test_a_token_is_found_by_its_input():
    rng = np.random.default_rng(2)
    known = rng.standard_normal((200, 64))
    basis = spanned(lora_gradients(known[[17, 3, 99]], rank=4))
    # Any of the three lies in the span; no other does.
    inside = share_inside(known, basis)
    assert set(np.flatnonzero(inside > 0.999)) == {3, 17, 99}
    assert read_token(basis, known) in {3, 17, 99}


def test_a_gradient_of_nothing_spans_nothing():
    assert len(spanned(np.zeros((4, 9)))) == 0
    assert cosine(np.zeros(3), np.zeros(3), np.zeros(3)) == 0.0


def test_the_secure_sum_is_the_weighted_mean_and_its_messages_are_not_the_change():
    rng = np.random.default_rng(3)
    changes = [rng.standard_normal(400) for _ in range(3)]
    masked, total = secure_sum(changes, [1, 2, 5], 50.0)
    wanted = (changes[0] + 2 * changes[1] + 5 * changes[2]) / 8
    np.testing.assert_allclose(total, wanted, atol=1e-5)
    assert abs(np.corrcoef(masked, changes[0])[0, 1]) < 0.25


@pytest.fixture(scope="module")
def attacked(small_job):
    """What is recovered from patients of the tiny model that comes with Consilia."""
    encoder = DualEncoder.load(ModelConfig(precision="float32"), LoraConfig())
    public = references(encoder, 1, 64)
    pairs = draw_pairs(120, 5, encoder)
    data = type(public.data)(
        "s", (), {}, {**public.data.splits, "train": pairs.split()}, DatasetOrigin(origin="phantom")
    )
    rng = np.random.default_rng(0)
    start = SharedAdapter({
        name: values if factor_of(name) == "A"
        else (0.02 * rng.standard_normal(values.shape)).astype(np.float32)
        for name, values in fresh_adapter(encoder.layout, 1).factors.items()
    })  # fmt: skip
    aggregate = small_job.aggregate.model_copy(update={"weighting": "size"})
    train = small_job.train.model_copy(update={"batch_size": 32})
    job = small_job.model_copy(update={"aggregate": aggregate, "train": train})
    victims = Victims(encoder, data, start, public, job)
    steps = PatientSteps(clip=1.0, noise=1.0, rate=1.0, expected=1.0, public=public)
    try:
        found = exposures(victims, job, steps, 12, 0)
    finally:
        victims.close()
    return {(each.way, each.tower): each for each in found}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_single_update_gives_its_inputs_back(attacked, tower):
    assert attacked["alone", tower].low > 0.99


def test_a_single_update_gives_its_report_back(attacked):
    found = attacked["alone", "text"]
    assert found.tokens > 0.8
    assert found.guessed < 0.4


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("way", ["masked", "sum-of-three", "sum-of-batches", "noised"])
def test_the_secure_sum_and_noise_keep_them(attacked, way, tower):
    found = attacked[way, tower]
    assert found.cosine < 0.2
    if tower == "text" and way in ("masked", "noised"):
        assert found.tokens < 0.1


def test_other_families_are_refused_in_words(siglip_folder, small_job):
    model = ModelConfig(base=str(siglip_folder), precision="float32")
    encoder = DualEncoder.load(model, LoraConfig(rank=4))
    with pytest.raises(InputError, match="plain CLIP"):
        Victims(encoder, None, SharedAdapter({}), None, small_job)
