"""Training of one round: who moves, who does not, and that the same seed gives the same bits."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from client.data.records import SiteData
from client.training import (
    SiteTask,
    TrainedAdapter,
    fresh_adapter,
    train_local,
    train_shared,
)
from client.validation import validation_loss
from shared.adapter import SharedAdapter, factor_of
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora)


@pytest.fixture(scope="module")
def start(encoder: DualEncoder) -> SharedAdapter:
    rng = np.random.default_rng(3)
    fresh = fresh_adapter(encoder.layout, 1).factors
    return SharedAdapter(
        {n: a if factor_of(n) == "A" else (0.01 * rng.standard_normal(a.shape)).astype(np.float32)
         for n, a in fresh.items()}
    )  # fmt: skip


def train(
    encoder: DualEncoder, data: SiteData, start: SharedAdapter, job: JobConfig, **changes: object
) -> TrainedAdapter:
    task = {"data": data, "start": start, "factors": ("B",), "seed": 5, "round": 1, **changes}
    (result,) = train_shared(encoder, [SiteTask(**task)], job)
    if isinstance(result, TrainingError):
        raise result
    return result


def changed(job: JobConfig, **values: object) -> JobConfig:
    return job.model_copy(update={"train": job.train.model_copy(update=values)})


def same(first: TrainedAdapter, second: TrainedAdapter) -> bool:
    return first.factors.keys() == second.factors.keys() and all(
        np.array_equal(first.factors[name], second.factors[name]) for name in first.factors
    )


@pytest.mark.parametrize("factors", [("A",), ("B",), ("A", "B")])
@pytest.mark.parametrize("kind", ["paired", "image", "text", "unpaired"])
def test_only_own_towers_and_the_phase_move(
    encoder, site_of, start, small_job, kind, factors
) -> None:
    data = site_of(kind=kind)
    everything = dict(encoder.model.named_parameters())
    frozen = {n: p.detach().clone() for n, p in everything.items()}
    received = {n: a.copy() for n, a in start.factors.items()}
    result = train(encoder, data, start, small_job, factors=factors)
    assert set(result.factors) == {
        name
        for name in encoder.layout.names(factors)
        if encoder.layout.tower_of(name) in data.towers
    }
    assert all(not np.array_equal(a, start.factors[n]) for n, a in result.factors.items())
    assert all(np.array_equal(array, received[name]) for name, array in start.factors.items())
    for name, parameter in everything.items():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, frozen[name]), name
    assert set(result.gradient_norms) == set(data.towers)
    assert all(norm > 0 for norm in result.gradient_norms.values())
    assert result.steps == 4


@pytest.mark.parametrize("kind", ["paired", "image", "text", "unpaired"])
def test_training_lowers_the_validation_loss(encoder, site_of, small_job, kind) -> None:
    data = site_of(kind=kind)
    job = changed(small_job, steps=15)
    shared = fresh_adapter(encoder.layout, 1)
    before = validation_loss(encoder, data, AdapterView(shared), job)
    trained = train(encoder, data, shared, job, factors=("A", "B"))
    after = SharedAdapter({**shared.factors, **trained.factors})
    assert validation_loss(encoder, data, AdapterView(after), job) < before
    assert validation_loss(encoder, data, AdapterView(), job) == pytest.approx(before, rel=1e-5)


def test_the_same_seed_gives_the_same_bits(encoder, site_of, start, small_job) -> None:
    first = train(encoder, site_of(), start, small_job)
    torch.manual_seed(99)
    np.random.default_rng(99).random()
    assert same(first, train(encoder, site_of(), start, small_job))
    fresh = DualEncoder.load(small_job.model, small_job.lora)
    assert same(first, train(fresh, site_of(), start, small_job))
    assert not same(first, train(encoder, site_of(), start, small_job, seed=6))


def poisoned(data: SiteData, rng: np.random.Generator) -> SiteData:
    """Put garbage behind every mask."""
    splits = {}
    for name, split in data.splits.items():
        pixels = split.pixels.copy()
        noise = rng.integers(0, 256, pixels.shape).astype(np.uint8)
        pixels[~split.has_image] = noise[~split.has_image]
        texts = tuple(
            text if on else "dark opacity"
            for text, on in zip(split.texts, split.has_text, strict=True)
        )
        labels = split.labels.copy()
        labels[~split.labelled] = 7.0
        splits[name] = dataclasses.replace(split, pixels=pixels, texts=texts, labels=labels)
    return dataclasses.replace(data, splits=splits)


def mixed_site(site_of) -> SiteData:
    data = site_of(counts=(48, 24, 8))
    splits = {}
    for name, split in data.splits.items():
        number = np.arange(len(split)) % 8
        splits[name] = dataclasses.replace(
            split, has_image=number != 0, has_text=number != 1, labelled=number != 2
        )
    # Rows 8k + 3 are neither labelled nor paired.
    train = splits["train"]
    number = np.arange(len(train)) % 8
    splits["train"] = dataclasses.replace(
        train, has_text=train.has_text & (number != 3), labelled=train.labelled & (number != 3)
    )
    return dataclasses.replace(data, splits=splits)


@pytest.mark.parametrize("kind", ["image", "text", "unpaired", "mixed"])
def test_what_lies_behind_a_mask_changes_nothing(encoder, site_of, start, small_job, kind) -> None:
    data = mixed_site(site_of) if kind == "mixed" else site_of(kind=kind)
    other = poisoned(data, np.random.default_rng(0))
    assert same(train(encoder, data, start, small_job), train(encoder, other, start, small_job))
    views = [AdapterView(start)] * 2
    losses = [
        validation_loss(encoder, d, v, small_job) for d, v in zip((data, other), views, strict=True)
    ]
    assert losses[0] == losses[1]


def test_mixed_sites_train_both_towers(encoder, site_of, start, small_job) -> None:
    result = train(encoder, mixed_site(site_of), start, small_job)
    assert set(result.gradient_norms) == {"image", "text"}


def without_labels(data: SiteData) -> SiteData:
    splits = {
        name: dataclasses.replace(split, labelled=np.zeros(len(split), dtype=bool))
        for name, split in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits)


def test_unlabelled_lone_records_stay_near_the_received_model(
    encoder, site_of, start, small_job
) -> None:
    data = without_labels(site_of(kind="image"))
    result = train(encoder, data, start, small_job)
    # At the teacher only the shift of the pictures moves anything: the loss stays small.
    assert 0 < result.loss < 0.2
    assert validation_loss(encoder, data, AdapterView(start), small_job) is None


def test_the_anchor_holds_a_lone_tower(encoder, site_of, start, small_job) -> None:
    def distance(anchor: float) -> float:
        job = changed(small_job, anchor=anchor, steps=12)
        result = train(encoder, site_of(kind="image"), start, job)
        moved = SharedAdapter({**start.factors, **result.factors})
        pixels = torch.from_numpy(site_of().splits["test"].pixels)
        features = []
        for adapter in (start, moved):
            encoder.use(AdapterView(adapter))
            with torch.inference_mode():
                features.append(encoder.encode_images(pixels))
        return float((features[0] - features[1]).square().sum())

    assert distance(5.0) < 0.7 * distance(0.0)


@pytest.mark.parametrize(
    ("kind", "count", "labelled", "reason"),
    [
        ("paired", 0, True, "no-training-data"),
        ("paired", 1, True, "too-few-records"),
        ("image", 2, False, "too-few-records"),
        ("image", 1, True, None),
        ("paired", 2, False, None),
        ("image", 3, False, None),
    ],
)
def test_says_when_there_is_nothing_to_learn_from(
    encoder, site_of, start, small_job, kind, count, labelled, reason
) -> None:
    data = site_of(kind=kind, counts=(count, 4, 4))
    data = data if labelled else without_labels(data)
    if reason is None:
        assert math.isfinite(train(encoder, data, start, small_job).loss)
        return
    with pytest.raises(TrainingError) as error:
        train(encoder, data, start, small_job)
    assert error.value.reason == reason


def test_a_diverging_site_says_so_and_leaves_the_encoder_usable(
    encoder, site_of, start, small_job
) -> None:
    expected = train(encoder, site_of(), start, small_job)
    name = next(n for n in start.factors if ".lora_B" in n)
    broken = SharedAdapter({**start.factors, name: np.full_like(start.factors[name], np.inf)})
    with pytest.raises(TrainingError) as error:
        train(encoder, site_of(), broken, small_job)
    assert error.value.reason == "loss-not-finite"
    assert same(train(encoder, site_of(), start, small_job), expected)


def test_fresh_adapters_have_orthonormal_rows(encoder) -> None:
    fresh = fresh_adapter(encoder.layout, 1).factors
    assert list(fresh) == encoder.layout.names()
    for name, array in fresh.items():
        if factor_of(name) == "A":
            np.testing.assert_allclose(array @ array.T, np.eye(4), atol=1e-6)
        else:
            assert not array.any()


@pytest.mark.parametrize("kind", ["paired", "image"])
def test_training_alone_takes_the_federations_steps_and_learns(
    encoder, site_of, small_job, kind
) -> None:
    data = site_of(kind=kind)
    job = changed(small_job, steps=10)
    (local,) = train_local(encoder, [(data, 2)], job)
    assert set(local.factors) == set(encoder.layout.names())
    assert not local.residual
    untouched = [
        n for n in local.factors if encoder.layout.tower_of(n) not in data.towers and ".lora_B" in n
    ]
    assert all(not local.factors[name].any() for name in untouched)
    base = validation_loss(encoder, data, AdapterView(), job)
    assert validation_loss(encoder, data, AdapterView(local), job) < base
    (again,) = train_local(encoder, [(data, 2)], job)
    assert local.sha256() == again.sha256()
