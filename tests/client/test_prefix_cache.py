"""The frozen-prefix cache: the same numbers, for this encoder and these records only, and gone."""

import dataclasses
import gc
import logging

import numpy as np
import pytest
import torch

from client.batches import Batch, PreparedSplit, prepare
from client.data.records import SiteData
from client.encoding import Part, encode, encode_all
from client.personalization import PersonalTask, personalize
from client.prefix_cache import held_bytes, keep_prefixes, kept_prefixes, why_recomputed
from client.training import SiteTask, fresh_adapter, train_local, train_shared
from client.validation import validation_loss
from shared.adapter import TOWERS, Adapter, SharedAdapter
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

KINDS = ("unpaired", "paired", "image", "text")


def changed(job: JobConfig, **tables: dict[str, object]) -> JobConfig:
    tree = job.model_dump()
    for table, values in tables.items():
        tree[table] = {**tree[table], **values}
    return JobConfig.model_validate(tree)


@pytest.fixture(scope="module")
def job(small_job) -> JobConfig:
    return changed(small_job, lora={"layers": "top:1"}, train={"shift_pixels": 0})


@pytest.fixture(scope="module")
def without(job) -> JobConfig:
    return changed(job, train={"prefix_cache_mb": 0})


@pytest.fixture(scope="module")
def encoder(job) -> DualEncoder:
    return DualEncoder.load(job.model, job.lora)


def noisy(encoder: DualEncoder, seed: int) -> Adapter:
    rng = np.random.default_rng(seed)
    fresh = fresh_adapter(encoder.layout, seed).factors
    return {
        n: (a + 0.05 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in fresh.items()
    }


@pytest.fixture(scope="module")
def start(encoder) -> SharedAdapter:
    """An adapter with a residual, as after folds."""
    return SharedAdapter(noisy(encoder, 1), noisy(encoder, 2), 3)


def towers_kept(encoder: DualEncoder, prepared: PreparedSplit) -> set[str]:
    return {tower for tower in TOWERS if kept_prefixes(encoder, prepared, tower) is not None}


def assert_close(first: Adapter, second: Adapter) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=0, atol=1e-5, err_msg=name)


def count_prefixes(encoder: DualEncoder, monkeypatch) -> list[int]:
    """Return a list that grows by how many pictures go through the frozen layers."""
    seen: list[int] = []
    whole = encoder.image_prefix

    def counted(pixels):
        seen.append(len(pixels))
        return whole(pixels)

    monkeypatch.setattr(encoder, "image_prefix", counted)
    return seen


@pytest.mark.parametrize("factors", [("B",), ("A", "B")])
def test_a_cohort_of_all_kinds_trains_to_the_same_adapters(
    encoder, site_of, start, job, without, factors
) -> None:
    def train(job: JobConfig) -> tuple[list[SiteData], list[Adapter], list[float | None]]:
        # The first has the smallest batches, so that the cohort has to be rearranged.
        sites = [
            site_of(name=kind, kind=kind, counts=(24 * number, 24, 24))
            for number, kind in enumerate(KINDS, 1)
        ]
        before = [validation_loss(encoder, data, AdapterView(start), job) for data in sites]
        tasks = [SiteTask(data, start, factors, 5, 1) for data in sites]
        return sites, [found.factors for found in train_shared(encoder, tasks, job)], before

    cached, adapters, losses = train(job)
    plain, wanted, expected = train(without)
    expected_towers = ({"image", "text"}, {"image", "text"}, {"image"}, {"text"})
    for data, towers in zip(cached, expected_towers, strict=True):
        assert towers_kept(encoder, prepare(encoder, data, "train")) == towers
        assert towers_kept(encoder, prepare(encoder, data, "val")) == towers
    assert all(not towers_kept(encoder, prepare(encoder, data, "train")) for data in plain)
    for first, second in zip(adapters, wanted, strict=True):
        assert_close(first, second)
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_personal_and_local_fits_are_the_same(encoder, site_of, start, job, without, kind) -> None:
    def fit(job: JobConfig) -> tuple[Adapter, dict[str, float], Adapter]:
        data = site_of(kind=kind)
        (personal,) = personalize(encoder, [PersonalTask(data, start, 4)], job)
        (local,) = train_local(encoder, [(data, 4)], job)
        return personal.adapter, dict(personal.validation), local.factors

    (personal, scores, local), (wanted, expected, alone) = fit(job), fit(without)
    assert_close(personal, wanted)
    assert_close(local, alone)
    assert scores == pytest.approx(expected, abs=1e-5)


def test_frozen_layers_are_computed_once_for_all_rounds(
    encoder, site_of, start, job, without, monkeypatch
) -> None:
    seen = count_prefixes(encoder, monkeypatch)
    data = site_of()
    for number in (1, 2):
        train_shared(encoder, [SiteTask(data, start, ("A", "B"), 5 + number, number)], job)
        validation_loss(encoder, data, AdapterView(start), job)
    assert sum(seen) == (48 + 1) + (24 + 1)  # one more each, to see how much room is needed
    seen.clear()
    train_shared(encoder, [SiteTask(site_of(), start, ("A", "B"), 6, 1)], without)
    assert sum(seen) == 4 * 16


def test_parts_with_and_without_the_cache_share_a_batch(encoder, site_of, job) -> None:
    sites = [site_of(seed=seed) for seed in (1, 2)]
    prepared = [prepare(encoder, data, "train") for data in sites]
    encoder.use(AdapterView())
    rows = [np.arange(3), np.arange(11, 5, -1)]
    none = rows[0][:0]
    parts = [Part(p, Batch(r, none, none)) for p, r in zip(prepared, rows, strict=True)]
    wanted = encode(encoder, parts)
    keep_prefixes(encoder, prepared[1], job, training=False)
    assert not towers_kept(encoder, prepared[0])
    assert towers_kept(encoder, prepared[1]) == {"image", "text"}
    for one, two in zip(encode(encoder, parts), wanted, strict=True):
        torch.testing.assert_close(one.image, two.image, rtol=0, atol=1e-6)
        torch.testing.assert_close(one.text, two.text, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "targets", "depth"),
    [
        ("all", ["attention"], {"image": 0, "text": 0}),
        ("top:1", ["attention"], {"image": 1, "text": 1}),
        ("top:1", ["visual_projection", "text_projection"], {"image": 2, "text": 2}),
        ("all", ["projection"], {"image": 2, "text": 2}),
        ("all", ["visual_projection", "text_model.encoder.layers.1.mlp.fc1"],
         {"image": 2, "text": 1}),
    ],
)  # fmt: skip
def test_prefixes_end_at_the_first_adapter_and_know_of_none(
    site_of, job, layers, targets, depth
) -> None:
    lora = job.lora.model_copy(update={"layers": layers, "targets": targets})
    encoder = DualEncoder.load(job.model, lora)
    assert encoder.frozen_layers == depth
    prepared = prepare(encoder, site_of(), "train")
    wanted = []
    for view in (AdapterView(), AdapterView(SharedAdapter(noisy(encoder, 1), noisy(encoder, 2)))):
        encoder.use(view)
        wanted.append(encode_all(encoder, prepared, prepared.everything))
    assert not torch.allclose(wanted[0].image, wanted[1].image, atol=1e-3)
    keep_prefixes(encoder, prepared, job, training=True)  # with adapters in use
    assert towers_kept(encoder, prepared) == {tower for tower in TOWERS if depth[tower]}
    encoder.use(AdapterView())
    found = encode_all(encoder, prepared, prepared.everything)
    torch.testing.assert_close(found.image, wanted[0].image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, wanted[0].text, rtol=0, atol=1e-5)


def test_texts_end_where_the_tower_says(encoder, site_of, job) -> None:
    data = site_of(counts=(8, 4, 4))
    texts = ("no finding </s> upper bright square", *data.splits["train"].texts[1:])
    train = dataclasses.replace(data.splits["train"], texts=texts)
    data = dataclasses.replace(data, splits={**data.splits, "train": train})
    prepared = prepare(encoder, data, "train")
    encoder.use(AdapterView())
    wanted = encode_all(encoder, prepared, prepared.everything).text
    keep_prefixes(encoder, prepared, job, training=True)
    found = encode_all(encoder, prepared, prepared.everything).text
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_what_scoring_computed_can_be_trained_on(site_of, job) -> None:
    encoder = DualEncoder.load(job.model, job.lora.model_copy(update={"targets": ["mlp"]}))
    data = site_of()
    with torch.inference_mode():
        keep_prefixes(encoder, prepare(encoder, data, "train"), job, training=True)
        train = prepare(encoder, data, "train")
        encode_all(encoder, train, train.everything)
    fresh = fresh_adapter(encoder.layout, 1)
    (result,) = train_shared(encoder, [SiteTask(data, fresh, ("A", "B"), 5, 1)], job)
    assert not isinstance(result, TrainingError)


def test_moved_pictures_are_never_taken_from_the_cache(encoder, site_of, job) -> None:
    moving = changed(job, train={"shift_pixels": 2})
    train = prepare(encoder, site_of(), "train")
    keep_prefixes(encoder, train, moving, training=True)
    assert towers_kept(encoder, train) == {"text"}
    # Even if there are prefixes of the pictures as they are.
    keep_prefixes(encoder, train, job, training=True)
    assert towers_kept(encoder, train) == {"image", "text"}
    encoder.use(AdapterView())
    rows = np.arange(8)
    batch = Batch(rows, rows[:0], rows[:0])
    still, moved = (
        encode(encoder, [Part(train, batch, shift=(most, np.random.default_rng(1)))])[0].image
        for most in (0, 2)
    )
    assert not torch.allclose(still, moved, atol=1e-3)


def test_other_encoders_and_other_records_find_nothing(encoder, site_of, job) -> None:
    data = site_of()
    keep_prefixes(encoder, prepare(encoder, data, "train"), job, training=True)
    other = DualEncoder.load(job.model.model_copy(update={"precision": "bfloat16"}), job.lora)
    assert not towers_kept(other, prepare(encoder, data, "train"))
    assert not towers_kept(encoder, prepare(encoder, data, "val"))
    assert not towers_kept(encoder, prepare(encoder, site_of(seed=1), "train"))
    keep_prefixes(other, prepare(other, data, "train"), job, training=True)
    kept = kept_prefixes(other, prepare(other, data, "train"), "image")
    assert kept is not None
    assert kept.hidden.dtype == torch.bfloat16


def test_memory_is_bounded_over_all_sites_and_given_back(encoder, site_of, job, caplog) -> None:
    gc.collect()
    empty = held_bytes()
    big, small = site_of(counts=(400, 4, 4)), site_of(counts=(48, 4, 4))
    one = changed(job, train={"prefix_cache_mb": 1 + empty // 2**20, "steps": 100})
    for data in (big, small):
        keep_prefixes(encoder, prepare(encoder, data, "train"), one, training=True)
    # 400 pictures of 17 x 32 numbers are 0.83 MB.
    assert 870_000 < held_bytes() - empty < 2**20 + 2**20 * (empty > 0)
    with caplog.at_level(logging.WARNING):
        third = site_of(counts=(480, 4, 4), seed=1)
        for _ in range(2):
            keep_prefixes(encoder, prepare(encoder, third, "train"), one, training=True)
    assert towers_kept(encoder, prepare(encoder, third, "train")) == {"text"}
    assert [record.message for record in caplog.records if "prefix cache" in record.message] == [
        f"prefix cache: the image tower of a site needs 1 MB, 0 of train.prefix_cache_mb = "
        f"{one.train.prefix_cache_mb} are left; its frozen layers are computed in every step"
    ]
    del big, small, third, data
    gc.collect()
    assert held_bytes() == empty


def test_what_a_run_asks_for_too_rarely_is_not_computed_in_advance(encoder, site_of, job) -> None:
    data = site_of(counts=(300, 4, 4))
    train = prepare(encoder, data, "train")
    keep_prefixes(encoder, train, job, training=True)  # (2 x 4 + 6 steps) x 16 pairs are asked for
    assert towers_kept(encoder, train) == {"text"}  # 300 pictures, but few distinct texts
    longer = job.model_copy(update={"rounds": 4})
    keep_prefixes(encoder, train, longer, training=True)
    assert towers_kept(encoder, train) == {"image", "text"}


def test_a_run_is_told_what_is_recomputed_and_why(encoder, siglip_folder, job, without) -> None:
    moving = changed(job, train={"shift_pixels": 2})
    assert why_recomputed(encoder, job.train) is None
    told = why_recomputed(encoder, moving.train)
    assert told is not None
    assert "train.shift_pixels = 2" in told
    assert "with 0 " in told
    assert "train.prefix_cache_mb = 0" in str(why_recomputed(encoder, without.train))
    everything = DualEncoder.load(job.model, job.lora.model_copy(update={"layers": "all"}))
    assert why_recomputed(everything, moving.train) is None
    model = job.model.model_copy(update={"base": str(siglip_folder)})
    siglip = DualEncoder.load(model, job.lora)
    assert "plain CLIP" in str(why_recomputed(siglip, job.train))
    assert siglip.frozen_layers == {"image": 0, "text": 0}
