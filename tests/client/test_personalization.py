"""duet: the personal adapter wins on the site's own validation records, or is not used."""

from typing import get_args

import numpy as np
import pytest
import torch

from client.data.records import SiteData
from client.personalization import (
    PERSONALIZATIONS,
    Personalized,
    PersonalTask,
    choose_by_standard_error,
    personalize,
)
from client.training import fresh_adapter
from client.validation import validation_loss
from shared.adapter import SharedAdapter, adapter_sha256
from shared.config import JobConfig, PersonalizationMethod
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

NOTHING, BOTH = (0.0, 0.0), (1.0, 1.0)


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora)


@pytest.fixture(scope="module")
def shared(encoder: DualEncoder) -> SharedAdapter:
    return fresh_adapter(encoder.layout, 1)


def duet_job(job: JobConfig, **values: object) -> JobConfig:
    return job.model_copy(update={"personalize": job.personalize.model_copy(update=values)})


def fitted(
    encoder: DualEncoder, data: SiteData, shared: SharedAdapter, job: JobConfig, seed: int
) -> Personalized:
    (found,) = personalize(encoder, [PersonalTask(data, shared, seed)], job)
    assert isinstance(found, Personalized)
    return found


@pytest.mark.parametrize("kind", ["paired", "image", "text", "unpaired"])
def test_every_kind_of_site_gets_its_own_adapter(encoder, site_of, shared, small_job, kind) -> None:
    data = site_of(kind=kind)
    job = duet_job(small_job, steps=25)
    before = shared.sha256()
    found = fitted(encoder, data, shared, job, seed=3)
    assert shared.sha256() == before
    assert {encoder.layout.tower_of(name) for name in found.adapter} == set(data.towers)
    assert set(found.alpha) == set(data.towers)
    assert set(found.alpha.values()) <= {0.0, 1.0}
    assert any(found.alpha.values())  # there is something to learn here
    assert found.validation["chosen"] < found.validation["shared"]
    view = AdapterView(shared, found.adapter, found.alpha)
    if kind == "paired":  # prompts play no part
        loss = validation_loss(encoder, data, view, job)
        assert loss == pytest.approx(found.validation["chosen"], rel=1e-5)


def test_the_same_seed_gives_the_same_bits(encoder, site_of, shared, small_job) -> None:
    first, second = (fitted(encoder, site_of(), shared, small_job, seed=3) for _ in range(2))
    assert adapter_sha256(first.adapter) == adapter_sha256(second.adapter)
    assert first.alpha == second.alpha
    other = fitted(encoder, site_of(), shared, small_job, seed=4)
    assert adapter_sha256(first.adapter) != adapter_sha256(other.adapter)


def test_a_personal_adapter_that_loses_is_not_used(encoder, site_of, shared, small_job) -> None:
    # Labels of the validation split are those of nobody: what is learned cannot help there.
    import dataclasses

    data = site_of(kind="image")
    val = data.splits["val"]
    flipped = dataclasses.replace(val, labels=1 - val.labels)
    data = dataclasses.replace(data, splits={**data.splits, "val": flipped})
    found = fitted(encoder, data, shared, duet_job(small_job, steps=25), seed=3)
    assert found.alpha == {"image": 0.0}
    assert found.validation["personal"] > found.validation["shared"] == found.validation["chosen"]


def test_distillation_keeps_the_personal_model_near_the_shared_one(
    encoder, site_of, shared, small_job
) -> None:
    data = site_of()
    pixels = torch.from_numpy(data.splits["test"].pixels)

    def distance(distill: float) -> float:
        job = duet_job(small_job, distill=distill, steps=12)
        found = fitted(encoder, data, shared, job, seed=3)
        features = []
        for alpha in (0.0, 1.0):
            encoder.use(AdapterView(shared, found.adapter, {"image": alpha}))
            with torch.inference_mode():
                features.append(encoder.encode_images(pixels))
        return float((features[0] - features[1]).square().sum())

    assert distance(5.0) < 0.7 * distance(0.0)


def test_a_fine_grid_only_with_enough_pairs(encoder, site_of, shared, small_job) -> None:
    data = site_of(counts=(48, 24, 8))
    job = duet_job(small_job, steps=12, grid_from=24)
    found = fitted(encoder, data, shared, job, seed=3)
    assert set(found.alpha.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    coarse = fitted(encoder, data, shared, duet_job(job, grid_from=25), seed=3)
    assert set(coarse.alpha.values()) <= {0.0, 1.0}
    assert found.validation["chosen"] <= coarse.validation["chosen"]


def test_without_validation_records_the_shared_model_is_used(
    encoder, site_of, shared, small_job
) -> None:
    found = fitted(encoder, site_of(counts=(48, 0, 8)), shared, small_job, seed=3)
    assert found.alpha == {"image": 0.0, "text": 0.0}
    assert found.validation == {}


def test_none_is_the_shared_model(encoder, site_of, shared, small_job) -> None:
    found = fitted(encoder, site_of(), shared, duet_job(small_job, method="none"), seed=3)
    assert found.adapter == {}
    assert found.alpha == {"image": 0.0, "text": 0.0}
    assert set(PERSONALIZATIONS) == set(get_args(PersonalizationMethod))


def choose(
    reference: list[float], candidate: list[float], patients: list[int]
) -> tuple[float, ...]:
    losses = {NOTHING: np.array(reference), BOTH: np.array(candidate)}
    return choose_by_standard_error(losses, NOTHING, np.array(patients))


def test_wins_only_by_more_than_one_standard_error() -> None:
    # Gains 2, 0: mean 1, sd sqrt 2, standard error 1: not clearly. Gains 2, 1, 0, 1: se 0.41.
    assert choose([2, 0], [0, 0], [0, 1]) == NOTHING
    assert choose([2, 1, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3]) == BOTH


def test_many_records_of_one_patient_are_one_observation() -> None:
    assert choose([1] * 8, [0] * 8, [0] * 8) == NOTHING
    gains, nothing = [1.0] * 9 + [0.0], [0.0] * 10
    assert choose(gains, nothing, list(range(10))) == BOTH
    assert choose(gains, nothing, [0] * 9 + [1]) == NOTHING


def test_the_best_of_the_clear_winners_is_taken_and_nan_never_wins() -> None:
    losses = {
        NOTHING: np.array([3.0, 3.1, 3.0]),
        (1.0, 0.0): np.array([2.0, 2.0, 2.0]),
        (0.0, 1.0): np.array([1.0, 1.0, 1.1]),
        BOTH: np.array([0.0, np.nan, 0.0]),
    }
    assert choose_by_standard_error(losses, NOTHING, np.arange(3)) == (0.0, 1.0)
