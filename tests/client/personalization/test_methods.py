"""Every method's own promise, and what all of them have in common."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from client.data.records import SiteData
from client.personalization import (
    PERSONALIZATIONS,
    Personalized,
    PersonalTask,
    personalize,
)
from client.training import SiteTask, fresh_adapter, fresh_factors, train_shared
from shared.adapter import (
    TOWERS,
    Adapter,
    SharedAdapter,
    adapter_sha256,
    factor_name,
    module_of,
    products,
)
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

KINDS = ("paired", "image", "text", "unpaired")
LEARNING = [method for method in PERSONALIZATIONS if method not in ("none", "own-factor")]
CONTINUED = ("finetune", "ditto", "feddat")


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora)


def random_factors(encoder: DualEncoder, seed: int, rank: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for layer in encoder.layout.layers:
        found |= fresh_factors(layer.module, layer.outputs, layer.inputs, rank, rng)
        b = 0.05 * rng.standard_normal((layer.outputs, rank))
        found[factor_name(layer.module, "B")] = b.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def shared(encoder: DualEncoder) -> SharedAdapter:
    """Trained factors, and two folds of them."""
    residual = random_factors(encoder, 2, 2 * encoder.layout.rank)
    return SharedAdapter(random_factors(encoder, 1, encoder.layout.rank), residual, folds=2)


def job_of(job: JobConfig, method: str, **values: object) -> JobConfig:
    update = {"method": method, "use": "always", **values}
    return job.model_copy(update={"personalize": job.personalize.model_copy(update=update)})


def fitted(
    encoder: DualEncoder,
    sites: Sequence[SiteData],
    shared: SharedAdapter,
    job: JobConfig,
    seed: int = 3,
) -> list[Personalized]:
    found = personalize(encoder, [PersonalTask(d, shared, seed) for d in sites], job)
    assert all(isinstance(each, Personalized) for each in found), found
    return found


def weights(encoder: DualEncoder, view: AdapterView) -> dict[str, torch.Tensor]:
    """The weight of every adapted layer under a view."""
    encoder.use(view)
    return {
        layer.module: encoder.merged_weight(layer.module).clone() for layer in encoder.layout.layers
    }


def own_weights(
    encoder: DualEncoder, shared: SharedAdapter, found: Personalized
) -> dict[str, torch.Tensor]:
    return weights(encoder, AdapterView(shared, found.adapter, found.alpha))


def largest(adapter: Adapter) -> float:
    return max(float(np.abs(product).max()) for product in products(adapter).values())


def apart(one: Adapter, other: Adapter) -> float:
    """Largest difference of the functions' weights."""
    first, second = products(one), products(other)
    assert first.keys() == second.keys()
    return max(float(np.abs(first[module] - second[module]).max()) for module in first)


@pytest.mark.parametrize("method", LEARNING)
def test_alone_a_site_gets_what_it_gets_in_a_cohort(
    encoder, site_of, shared, small_job, method
) -> None:
    sites = [site_of(kind, kind, seed=number) for number, kind in enumerate(KINDS)]
    job = job_of(small_job, method)
    before = shared.sha256(), adapter_sha256(shared.factors)
    together = fitted(encoder, sites, shared, job)
    repeated = fitted(encoder, sites, shared, job)
    for data, found, again in zip(sites, together, repeated, strict=True):
        (alone,) = fitted(encoder, [data], shared, job)
        assert apart(found.adapter, alone.adapter) <= 1e-5
        assert found.alpha == alone.alpha
        assert adapter_sha256(found.adapter) == adapter_sha256(again.adapter)
        assert set(data.towers) <= set(found.alpha)
        assert largest(found.adapter) > 1e-3  # it has learned something
    assert (shared.sha256(), adapter_sha256(shared.factors)) == before


@pytest.mark.parametrize("method", LEARNING)
def test_a_site_that_cannot_learn_does_not_keep_others_from_it(
    encoder, site_of, shared, small_job, method
) -> None:
    tasks = [
        PersonalTask(data, shared, 3)
        for data in (site_of("one"), site_of("empty", "paired", (1, 4, 4)), site_of("two"))
    ]
    first, refused, last = personalize(encoder, tasks, job_of(small_job, method))
    assert refused.reason == "too-few-records"
    assert first.adapter.keys() == last.adapter.keys()


@pytest.mark.parametrize("method", LEARNING)
def test_what_does_not_win_on_validation_is_not_used(encoder, site_of, small_job, method) -> None:
    # Labels of the validation split are those of nobody: what is learned cannot help there.
    data = site_of(kind="image")
    val = data.splits["val"]
    flipped = dataclasses.replace(val, labels=1 - val.labels)
    data = dataclasses.replace(data, splits={**data.splits, "val": flipped})
    start = fresh_adapter(encoder.layout, 1)
    job = job_of(small_job, method, use="if-better", steps=30, learning_rate=0.01, proximal=0.0)
    (chosen,) = fitted(encoder, [data], start, job)
    (always,) = fitted(encoder, [data], start, job_of(job, method))
    assert adapter_sha256(chosen.adapter) == adapter_sha256(always.adapter)
    assert set(always.alpha.values()) == {1.0}
    assert set(chosen.alpha.values()) == {0.0}
    assert always.validation["chosen"] == always.validation["personal"]
    assert chosen.validation["personal"] > chosen.validation["shared"]
    assert chosen.validation["chosen"] == chosen.validation["shared"]


@pytest.mark.parametrize("method", LEARNING)
def test_without_steps_it_is_the_shared_model(encoder, site_of, shared, small_job, method) -> None:
    (found,) = fitted(encoder, [site_of()], shared, job_of(small_job, method, steps=0))
    assert found == Personalized({}, {"image": 0.0, "text": 0.0})


@pytest.mark.parametrize("kind", KINDS)
def test_local_is_the_base_plus_its_own_and_nothing_shared(
    encoder, site_of, shared, small_job, kind
) -> None:
    data, job = site_of(kind=kind), job_of(small_job, "local")
    (found,) = fitted(encoder, [data], shared, job)
    (elsewhere,) = fitted(encoder, [data], SharedAdapter({}), job)  # where nothing is shared
    assert set(found.alpha) == set(TOWERS)  # a tower that it lacks is the base's again
    wanted = own_weights(encoder, SharedAdapter({}), elsewhere)
    for module, weight in own_weights(encoder, shared, found).items():
        torch.testing.assert_close(weight, wanted[module], atol=1e-6, rtol=0)
    # Rank: its own, minus the shared factors', minus the residual's.
    for layer in encoder.layout.layers:
        own = job.personalize.rank if layer.tower in data.towers else 0
        rank = own + encoder.layout.rank + 2 * encoder.layout.rank
        assert found.adapter[factor_name(layer.module, "A")].shape[0] == rank


def test_local_is_scored_with_prompts_of_its_own_text_tower(
    encoder, site_of, shared, small_job
) -> None:
    data, job = site_of(kind="image"), job_of(small_job, "local")
    (found,) = fitted(encoder, [data], shared, job)
    (elsewhere,) = fitted(encoder, [data], SharedAdapter({}), job)
    assert found.validation["personal"] == pytest.approx(elsewhere.validation["personal"], abs=1e-4)
    assert found.validation["shared"] != pytest.approx(elsewhere.validation["shared"], abs=1e-3)


@pytest.mark.parametrize("method", CONTINUED)
def test_what_goes_on_from_the_shared_factors_ends_with_their_negative(
    encoder, site_of, shared, small_job, method
) -> None:
    """Stored is own - shared, in halves for feddat; the frozen half is the shared one's bits."""
    (found,) = fitted(encoder, [site_of()], shared, job_of(small_job, method))
    rank, weight = encoder.layout.rank, np.float32(0.5 if method == "feddat" else 1.0)
    for name, array in found.adapter.items():
        if name == factor_name(module_of(name), "A"):
            np.testing.assert_array_equal(array[rank:], shared.factors[name])
        else:
            np.testing.assert_array_equal(array[:, rank:], -weight * shared.factors[name])


def test_finetune_goes_on_as_one_more_round_would(encoder, site_of, shared, small_job) -> None:
    """Same losses, same optimiser: with the same seed and rates, the same factors."""
    data = site_of("s", "unpaired")
    steps = {"steps": small_job.train.steps, "learning_rate": small_job.train.learning_rate}
    job = job_of(small_job.model_copy(update={"rounds": 1}), "finetune", **steps)
    (found,) = fitted(encoder, [data], shared, job, seed=5)
    (trained,) = train_shared(encoder, [SiteTask(data, shared, ("A", "B"), 5, 1)], job)
    for name, array in trained.factors.items():
        rank = encoder.layout.rank
        own = found.adapter[name]
        own = own[:rank] if array.shape[0] == rank else own[:, :rank]
        np.testing.assert_allclose(own, array, atol=1e-6)


def test_ditto_without_pull_is_finetune_bit_for_bit(encoder, site_of, shared, small_job) -> None:
    sites = [site_of(kind=kind) for kind in KINDS]
    free = fitted(encoder, sites, shared, job_of(small_job, "ditto", proximal=0.0))
    plain = fitted(encoder, sites, shared, job_of(small_job, "finetune", proximal=9.0))
    for one, other in zip(free, plain, strict=True):
        assert adapter_sha256(one.adapter) == adapter_sha256(other.adapter)


def test_ditto_with_an_endless_pull_is_the_shared_model(
    encoder, site_of, shared, small_job
) -> None:
    """Up to the optimiser's last steps: Adam's are as long as the learning rate, however steep."""

    def moved(**values: float) -> float:
        job = job_of(small_job, "ditto", steps=24, **values)
        return largest(fitted(encoder, [site_of()], shared, job)[0].adapter)

    distances = [moved(proximal=mu) for mu in (0.0, 0.3, 3.0, 1e6)]
    assert distances == sorted(distances, reverse=True)
    assert distances[3] < 0.05 * distances[0]
    smaller = moved(proximal=1e6, learning_rate=small_job.personalize.learning_rate / 10)
    assert smaller == pytest.approx(distances[3] / 10, rel=0.5)


def test_fedper_changes_the_projections_and_nothing_else(
    encoder, site_of, shared, small_job
) -> None:
    for kind in KINDS:
        data = site_of(kind=kind)
        (found,) = fitted(encoder, [data], shared, job_of(small_job, "fedper"))
        names = {"image": "visual_projection", "text": "text_projection"}
        wanted = {names[tower] for tower in data.towers}
        assert {module_of(name) for name in found.adapter} == wanted
        before = weights(encoder, AdapterView(shared))
        for module, weight in own_weights(encoder, shared, found).items():
            if module in wanted:
                assert float((weight - before[module]).abs().max()) > 1e-4
            else:
                assert torch.equal(weight, before[module])


def test_fedper_is_refused_without_projections(clip_folder, small_job) -> None:
    tree = small_job.model_dump(mode="json")
    tree["personalize"] |= {"method": "fedper"}
    tree["lora"] |= {"targets": ["attention"]}
    with pytest.raises(ValueError, match="adapts none; add 'projection'"):
        JobConfig.model_validate(tree)
    tree["lora"] |= {"targets": ["visual_projection"]}
    assert JobConfig.model_validate(tree).personalize.method == "fedper"


def test_fedper_on_a_base_without_projections_says_so(siglip_folder, site_of, small_job) -> None:
    model = small_job.model.model_copy(update={"base": str(siglip_folder)})
    job = job_of(small_job.model_copy(update={"model": model}), "fedper")
    encoder = DualEncoder.load(job.model, job.lora)
    task = PersonalTask(site_of(), SharedAdapter({}), 1)
    (refused,) = personalize(encoder, [task], job)
    assert refused.reason == "no-projection"
