"""What records say: alone, side by side with other sites', and encoded once."""

import dataclasses

import numpy as np
import pytest
import torch

from client import losses
from client.batches import Batch, PreparedSplit, prepare
from client.encoding import Features, Part, encode, encode_all
from client.losses import LossContext, PromptSet, Teacher, batch_losses
from client.training import fresh_adapter
from shared.adapter import SharedAdapter
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

NONE = np.arange(0)


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora)


def unit(count: int, seed: int) -> torch.Tensor:
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(noise, dim=-1)


def context_of(prepared: PreparedSplit, seed: int, paired: float) -> LossContext:
    count = len(prepared.split)
    prompts = PromptSet(np.arange(2), unit(2, seed), torch.zeros(2))
    teacher = Teacher(unit(count, seed + 1), unit(count, seed + 2), 0.5, paired)
    return LossContext(prompts, teacher, 10.0, 0.3)


@pytest.fixture
def parts(encoder, site_of) -> list[tuple[Part, Features, LossContext]]:
    """Sites with equally and with differently many pairs, with a teacher of pairs and without,
    with other findings, and with records of one side."""
    few = site_of(counts=(9, 4, 4), seed=5)
    splits = {
        name: dataclasses.replace(split, labels=split.labels[:, :1])
        for name, split in few.splits.items()
    }
    one_finding = dataclasses.replace(few, findings=few.findings[:1], splits=splits)
    sites = [site_of(counts=(9, 4, 4), seed=seed) for seed in range(4)]
    batches = [Batch(np.arange(5) + k, NONE, NONE) for k in range(3)]
    batches += [Batch(np.arange(7), NONE, NONE), Batch(np.arange(5), NONE, NONE)]
    batches += [Batch(np.arange(3), np.array([4, 5]), np.array([6]))]
    made = []
    for number, batch in enumerate(batches):
        data = {4: one_finding}.get(number, sites[number % 4])
        prepared = prepare(encoder, data, "train")
        weights = Features(
            unit(len(batch.with_image), 50 + number), unit(len(batch.with_text), 70 + number)
        )
        context = context_of(prepared, 100 + 5 * number, paired=0.4 if number == 1 else 0.0)
        if number == 4:
            context = dataclasses.replace(context, prompts=None)
        made.append((Part(prepared, batch, number), weights, context))
    return made


def test_every_part_has_the_loss_that_it_has_alone(parts) -> None:
    """Those of pairs alone are computed side by side; the others' formula is the same."""
    chosen, features, contexts = zip(*parts, strict=True)
    together = batch_losses(features, chosen, contexts)
    assert together.shape == (len(parts),)
    for loss, (part, found, context) in zip(together, parts, strict=True):
        (alone,) = batch_losses([found], [part], [context])
        torch.testing.assert_close(loss, alone)
        general = losses._mixed_loss(found, part.prepared, part.batch, context)
        torch.testing.assert_close(loss, general)
    assert len({round(float(loss), 4) for loss in together}) == len(parts)


def test_the_loss_of_one_part_has_no_gradient_at_the_others(parts) -> None:
    chosen, features, contexts = zip(*parts, strict=True)
    for wanted in range(len(parts)):
        leaves = [
            Features(f.image.clone().requires_grad_(), f.text.clone().requires_grad_())
            for f in features
        ]
        batch_losses(leaves, chosen, contexts)[wanted].backward()
        for number, leaf in enumerate(leaves):
            for side in (leaf.image, leaf.text):
                got = side.grad is not None and bool(side.grad.abs().sum() > 0)
                assert got == (number == wanted)


def test_parts_are_encoded_as_each_would_be_and_identical_texts_once(
    encoder, site_of, monkeypatch
) -> None:
    sites = [site_of(counts=(12, 4, 4), seed=seed) for seed in (1, 2)]
    adapters = [fresh_adapter(encoder.layout, seed).factors for seed in (1, 2)]
    rng = np.random.default_rng(0)
    moved = [
        {n: a + 0.05 * rng.standard_normal(a.shape).astype(np.float32) for n, a in one.items()}
        for one in adapters
    ]
    splits = [prepare(encoder, data, "train") for data in sites]
    batches = [Batch(np.arange(9), NONE, NONE), Batch(np.arange(4), np.array([5, 6]), NONE)]
    stack = encoder.new_stack(2)
    for row, adapter in enumerate(moved):
        stack.put(row, adapter)
    encoder.use_stack(stack, AdapterView())
    seen = []
    encode_texts = encoder.encode_texts
    monkeypatch.setattr(
        encoder,
        "encode_texts",
        lambda tokens, counts=None: seen.append(counts) or encode_texts(tokens, counts),
    )
    parts = [Part(splits[row], batches[row], row) for row in range(2)]
    with torch.no_grad():
        found = encode(encoder, parts, 2)
    distinct = [
        len({sites[r].splits["train"].texts[n] for n in batches[r].with_text}) for r in (0, 1)
    ]
    assert seen == [distinct]
    assert distinct[0] < 9
    for row in range(2):
        encoder.use(AdapterView(SharedAdapter(moved[row])))
        alone = encode_all(encoder, splits[row], batches[row])
        torch.testing.assert_close(found[row].image, alone.image, atol=2e-6, rtol=0)
        torch.testing.assert_close(found[row].text, alone.text, atol=2e-6, rtol=0)


def test_grey_and_coloured_pictures_go_together(encoder, site_of) -> None:
    grey = site_of(counts=(6, 4, 4), seed=1)
    splits = {
        name: dataclasses.replace(split, pixels=split.pixels.repeat(3, axis=3))
        for name, split in grey.splits.items()
    }
    coloured = dataclasses.replace(grey, splits=splits)
    encoder.use_stack(encoder.new_stack(2), AdapterView())
    batch = Batch(np.arange(4), NONE, NONE)
    parts = [
        Part(prepare(encoder, data, "train"), batch, row)
        for row, data in enumerate((grey, coloured))
    ]
    with torch.no_grad():
        one, other = encode(encoder, parts, 2)
    encoder.use(AdapterView())
    torch.testing.assert_close(one.image, other.image, atol=2e-6, rtol=0)
