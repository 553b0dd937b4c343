"""Which records a batch holds, and in which order."""

from itertools import islice

import numpy as np
import pytest
import torch

from client.batches import draw_batches, prepare, shifted, steps_of
from shared.config import JobConfig, ModelConfig, TrainConfig
from shared.model.encoder import DualEncoder


@pytest.fixture(scope="module")
def encoder(clip_folder) -> DualEncoder:
    return DualEncoder.load(ModelConfig(base=str(clip_folder)), JobConfig(name="x").lora)


def drawn(encoder, data, size, count, seed=0):
    train = prepare(encoder, data, "train")
    return train, list(islice(draw_batches(train, size, np.random.default_rng(seed)), count))


def test_a_batch_never_holds_a_record_twice(encoder, site_of) -> None:
    _, batches = drawn(encoder, site_of(counts=(23, 4, 4)), 16, 20)
    for batch in batches:
        assert len(batch.pairs) == 16
        assert len(set(batch.pairs.tolist())) == 16


def test_an_epoch_sees_every_record_once(encoder, site_of) -> None:
    _, batches = drawn(encoder, site_of(counts=(32, 4, 4)), 8, 4)
    assert sorted(np.concatenate([b.pairs for b in batches]).tolist()) == list(range(32))


def test_a_small_site_uses_all_it_has(encoder, site_of) -> None:
    _, batches = drawn(encoder, site_of(counts=(5, 4, 4)), 16, 3)
    for batch in batches:
        assert sorted(batch.pairs.tolist()) == list(range(5))


def test_unpaired_batches_hold_as_many_images_as_texts(encoder, site_of) -> None:
    train, batches = drawn(encoder, site_of(kind="unpaired", counts=(60, 4, 4)), 16, 4)
    for batch in batches:
        assert (len(batch.pairs), len(batch.images), len(batch.texts)) == (0, 16, 16)
        assert train.split.has_image[batch.images].all()
        assert train.split.has_text[batch.texts].all()


def test_mixed_sites_take_from_every_stratum_in_proportion(encoder, site_of) -> None:
    import dataclasses

    data = site_of(counts=(40, 4, 4))
    train = data.splits["train"]
    has_text = np.arange(40) < 30
    mixed = dataclasses.replace(train, has_text=has_text)
    data = dataclasses.replace(data, splits={**data.splits, "train": mixed})
    _, batches = drawn(encoder, data, 16, 5)
    for batch in batches:
        assert (len(batch.pairs), len(batch.images), len(batch.texts)) == (12, 4, 0)
        assert batch.size == 16


def test_texts_are_tokenised_once_while_the_site_lives(encoder, site_of) -> None:
    data = site_of()
    assert prepare(encoder, data, "train") is prepare(encoder, data, "train")
    assert prepare(encoder, site_of(), "train") is not prepare(encoder, data, "train")


def test_epochs_become_steps(encoder, site_of) -> None:
    train = prepare(encoder, site_of(counts=(40, 4, 4)), "train")
    assert steps_of(train, TrainConfig(steps=7)) == 7
    assert steps_of(train, TrainConfig(steps=None, epochs=1, batch_size=16)) == 3
    assert steps_of(train, TrainConfig(steps=None, epochs=0.1, batch_size=16)) == 1


def test_shift_moves_pixels_and_repeats_the_border() -> None:
    picture = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1)
    found = {
        tuple(shifted(picture, 1, np.random.default_rng(s)).flatten().tolist()) for s in range(99)
    }
    assert len(found) == 9  # one of three positions each way
    assert tuple(range(16)) in found
    down_right = (0, 0, 1, 2, 0, 0, 1, 2, 4, 4, 5, 6, 8, 8, 9, 10)
    assert down_right in found
    assert shifted(picture, 0, np.random.default_rng(0)) is picture
