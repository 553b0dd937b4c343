"""Sites that train side by side end where each would alone; nothing of one reaches another."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from client import fitting
from client.batches import prepare, steps_of
from client.data.records import SiteData
from client.encoding import encode
from client.personalization import PersonalTask, personalize
from client.training import SiteTask, TrainedAdapter, fresh_adapter, train_local, train_shared
from server.aggregation import AGGREGATORS
from shared.adapter import SharedAdapter, factor_of
from shared.config import AggregateConfig, JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder

PHASES = [("A",), ("B",), ("A", "B")]


@pytest.fixture(scope="module")
def encoder(request, small_job: JobConfig, siglip_folder) -> DualEncoder:
    """CLIP's own forward, or transformers' with adapted layers in it."""
    model = small_job.model
    if getattr(request, "param", "clip") == "siglip":
        model = model.model_copy(update={"base": str(siglip_folder)})
    return DualEncoder.load(model, small_job.lora)


def random_factors(encoder: DualEncoder, seed: int, size: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    fresh = fresh_adapter(encoder.layout, seed).factors
    return {
        n: a if factor_of(n) == "A" else (size * rng.standard_normal(a.shape)).astype(np.float32)
        for n, a in fresh.items()
    }


@pytest.fixture(scope="module")
def start(encoder: DualEncoder) -> SharedAdapter:
    return SharedAdapter(random_factors(encoder, 3, 0.05), random_factors(encoder, 4, 0.05), 1)


def mixed(data: SiteData) -> SiteData:
    """Pairs, lone images, lone texts, and some of all without labels."""
    splits = {}
    for name, split in data.splits.items():
        number = np.arange(len(split)) % 4
        texts = tuple(t if on else "" for t, on in zip(split.texts, number != 1, strict=True))
        splits[name] = dataclasses.replace(
            split,
            has_image=number != 0,
            has_text=number != 1,
            texts=texts,
            labelled=np.arange(len(split)) % 3 != 0,
        )
    return dataclasses.replace(data, splits=splits)


@pytest.fixture(scope="module")
def sites(site_of) -> list[SiteData]:
    """All kinds and sizes; of one epoch they make 3, 2, 1, 1, 1 and 2 steps of 16."""
    return [
        site_of("a", "paired", (40, 16, 4), seed=1),
        site_of("b", "image", (24, 8, 4), seed=2),
        site_of("c", "text", (9, 8, 4), seed=3),
        site_of("d", "unpaired", (20, 16, 4), seed=4),
        site_of("e", "paired", (5, 4, 4), seed=5),
        mixed(site_of("f", "paired", (32, 16, 4), seed=6)),
    ]


def changed(job: JobConfig, **values: object) -> JobConfig:
    return job.model_copy(update={"train": job.train.model_copy(update=values)})


@pytest.fixture
def epoch_job(small_job: JobConfig) -> JobConfig:
    """A round is one pass over the data, so that sites take different numbers of steps."""
    return changed(small_job, steps=None, epochs=1.0)


def tasks_of(
    sites: Sequence[SiteData], start: SharedAdapter, factors: tuple[str, ...] = ("A", "B")
) -> list[SiteTask]:
    return [SiteTask(data, start, factors, 7 + n, 1) for n, data in enumerate(sites)]


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def moved(found: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    return distance(found, {name: start[name] for name in found})


def assert_as_alone(
    together: TrainedAdapter | TrainingError, alone: TrainedAdapter | TrainingError, start
) -> None:
    assert isinstance(together, TrainedAdapter)
    assert isinstance(alone, TrainedAdapter)
    assert moved(alone.factors, start.factors) >= 1e-3
    assert distance(together.factors, alone.factors) <= 1e-5
    assert together.steps == alone.steps
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)
    assert together.gradient_norms == pytest.approx(alone.gradient_norms, rel=1e-3)


def test_every_rules_phases_are_tested_here() -> None:
    found = {
        rule(AggregateConfig(rule=name)).trains(number)
        for name, rule in AGGREGATORS.items()
        for number in range(1, 9)
    }
    assert found <= set(PHASES)


@pytest.mark.parametrize("encoder", ["clip", "siglip"], indirect=True)
@pytest.mark.parametrize("factors", PHASES)
def test_a_cohort_trains_every_site_as_it_would_be_alone(
    encoder, sites, start, epoch_job, factors
) -> None:
    tasks = tasks_of(sites, start, factors)
    together = train_shared(encoder, tasks, epoch_job)
    assert [result.steps for result in together] == [3, 2, 1, 1, 1, 2]
    for task, result in zip(tasks, together, strict=True):
        (alone,) = train_shared(encoder, [task], epoch_job)
        assert_as_alone(result, alone, start)


@pytest.mark.parametrize(
    "values",
    [
        {"proximal": 0.5},
        {"weight_decay": 0.3},
        {"max_gradient_norm": 0.05},
        {"label_similarity": 0.5, "batch_size": 7},
        {"schedule": "constant", "warmup_steps": 0, "shift_pixels": 0, "anchor": 2.0},
    ],
)
def test_so_it_does_with_every_setting_of_training(encoder, sites, start, small_job, values):
    job = changed(small_job, **values)
    tasks = [dataclasses.replace(task, round=2) for task in tasks_of(sites, start)]
    for task, result in zip(tasks, train_shared(encoder, tasks, job), strict=True):
        (alone,) = train_shared(encoder, [task], job)
        assert_as_alone(result, alone, start)


def test_sites_of_other_phases_and_foundations_train_in_cohorts_of_their_own(
    encoder, sites, start, small_job
) -> None:
    other = SharedAdapter(random_factors(encoder, 5, 0.05), random_factors(encoder, 6, 0.05), 2)
    starts, phases = [start, other, start, other], [("A",), ("B",), ("B",), ("B",)]
    tasks = [
        SiteTask(data, own, factors, 3, 1)
        for data, own, factors in zip(sites[:4], starts, phases, strict=True)
    ]
    for task, result in zip(tasks, train_shared(encoder, tasks, small_job), strict=True):
        (alone,) = train_shared(encoder, [task], small_job)
        assert_as_alone(result, alone, task.start)


def test_sites_with_other_factors_on_one_residual_share_a_cohort(
    encoder, sites, start, small_job, monkeypatch
) -> None:
    sizes = []
    fit = fitting.fit
    monkeypatch.setattr(
        "client.training.fit",
        lambda e, stack, *rest: sizes.append(len(stack)) or fit(e, stack, *rest),
    )
    moved_on = SharedAdapter(random_factors(encoder, 9, 0.05), start.residual, start.folds)
    tasks = [*tasks_of(sites[:2], start), *tasks_of(sites[2:4], moved_on)]
    together = train_shared(encoder, tasks, small_job)
    assert sizes == [4]
    for task, result in zip(tasks, together, strict=True):
        (alone,) = train_shared(encoder, [task], small_job)
        assert_as_alone(result, alone, task.start)


def copy_of(shared: SharedAdapter) -> SharedAdapter:
    factors, residual = (
        {name: array.copy() for name, array in part.items()}
        for part in (shared.factors, shared.residual)
    )
    return SharedAdapter(factors, residual, shared.folds)


def test_equal_adapters_make_one_cohort_whichever_objects_they_are(
    encoder, sites, start, small_job
) -> None:
    """After an interruption the objects are others, and a site's bits depend on its cohort."""
    tasks = tasks_of(sites, start)
    copies = [dataclasses.replace(task, start=copy_of(start)) for task in tasks]
    trained = [train_shared(encoder, some, small_job) for some in (tasks, copies)]
    for one, other in zip(*trained, strict=True):
        assert distance(one.factors, other.factors) == 0
    personal = [
        personalize(encoder, [PersonalTask(data, shared, 5) for data in sites], small_job)
        for shared in (start, copy_of(start))
    ]
    own = [PersonalTask(data, copy_of(start), 5) for data in sites]
    personal.append(personalize(encoder, own, small_job))
    for one, *others in zip(*personal, strict=True):
        for other in others:
            assert distance(one.adapter, other.adapter) == 0
            assert one.alpha == other.alpha


def test_a_cohort_gives_the_same_bits_twice_and_any_order_the_same_numbers(
    encoder, sites, start, epoch_job
) -> None:
    tasks = tasks_of(sites, start)
    first, again = (train_shared(encoder, tasks, epoch_job) for _ in range(2))
    turned = train_shared(encoder, tasks[::-1], epoch_job)[::-1]
    for one, two, three in zip(first, again, turned, strict=True):
        assert distance(one.factors, two.factors) == 0
        assert (one.loss, one.gradient_norms) == (two.loss, two.gradient_norms)
        assert distance(one.factors, three.factors) <= 1e-5


def test_no_site_trains_on_more_or_less_than_alone(
    encoder, sites, start, epoch_job, monkeypatch
) -> None:
    """Counted where the losses are: blocks and records of every site's row."""

    def counted(tasks: list[SiteTask]) -> Counter[str]:
        seen: Counter[str] = Counter()

        def watch(encoder, parts, adapters):
            for part in parts:
                name = next(d.name for d in sites if prepare(encoder, d, "train") is part.prepared)
                seen[name, "steps"] += 1
                seen[name, "images"] += len(part.batch.with_image)
                seen[name, "texts"] += len(part.batch.with_text)
            return encode(encoder, parts, adapters)

        with monkeypatch.context() as patch:
            patch.setattr(fitting, "encode", watch)
            train_shared(encoder, tasks, epoch_job)
        return seen

    tasks = tasks_of(sites, start)
    together = counted(tasks)
    assert together == sum((counted([task]) for task in tasks), Counter())
    for data in sites:
        wanted = steps_of(prepare(encoder, data, "train"), epoch_job.train)
        assert together[data.name, "steps"] == wanted
    assert together["b", "texts"] == together["c", "images"] == 0


# One that fails


def broken(start: SharedAdapter) -> SharedAdapter:
    name = next(n for n in start.factors if ".lora_B" in n)
    damaged = {**start.factors, name: np.full_like(start.factors[name], np.inf)}
    return SharedAdapter(damaged, start.residual, start.folds)


@pytest.mark.parametrize("encoder", ["clip", "siglip"], indirect=True)
@pytest.mark.parametrize("which", [0])
def test_a_site_whose_loss_is_not_finite_fails_alone(
    encoder, sites, start, epoch_job, which
) -> None:
    tasks = tasks_of(sites, start)
    well = train_shared(encoder, tasks, epoch_job)
    tasks[which] = dataclasses.replace(tasks[which], start=broken(start))
    found = train_shared(encoder, tasks, epoch_job)
    assert isinstance(found[which], TrainingError)
    assert found[which].reason == "loss-not-finite"
    for number, result in enumerate(found):
        if number != which:
            assert isinstance(result, TrainedAdapter)
            assert distance(result.factors, well[number].factors) <= 1e-6
            assert result.loss == pytest.approx(well[number].loss, rel=1e-6)
    # ... and leaves the encoder usable.
    for one, two in zip(
        train_shared(encoder, tasks_of(sites, start), epoch_job), well, strict=True
    ):
        assert distance(one.factors, two.factors) == 0


def test_a_site_without_records_has_its_reason_in_its_place(
    encoder, sites, site_of, start, small_job
) -> None:
    empty = [site_of("x", "paired", (0, 4, 4)), site_of("y", "paired", (1, 4, 4))]
    tasks = tasks_of([empty[0], sites[0], empty[1], sites[1]], start)
    results = train_shared(encoder, tasks, small_job)
    assert [getattr(r, "reason", None) for r in results] == [
        "no-training-data", None, "too-few-records", None,
    ]  # fmt: skip
    for number in (1, 3):
        (alone,) = train_shared(encoder, [tasks[number]], small_job)
        assert_as_alone(results[number], alone, start)
    assert all(isinstance(r, TrainingError) for r in train_shared(encoder, tasks[::2], small_job))
    assert train_shared(encoder, [], small_job) == []


# Local training and duet


@pytest.mark.parametrize("encoder", ["clip", "siglip"], indirect=True)
def test_training_alone_is_the_same_in_a_cohort(encoder, sites, site_of, epoch_job) -> None:
    chosen = [(data, 20 + n) for n, data in enumerate(sites)]
    empty = (site_of("y", "paired", (1, 4, 4)), 1)
    *together, refused = train_local(encoder, [*chosen, empty], epoch_job)
    assert refused.reason == "too-few-records"
    again = train_local(encoder, [*chosen, empty], epoch_job)
    for one, found, repeated in zip(chosen, together, again, strict=False):
        (alone,) = train_local(encoder, [one], epoch_job)
        assert moved(alone.factors, fresh_adapter(encoder.layout, one[1]).factors) >= 1e-3
        assert distance(found.factors, alone.factors) <= 1e-5
        assert found.sha256() == repeated.sha256()


@pytest.mark.parametrize("encoder", ["clip", "siglip"], indirect=True)
def test_duet_is_the_same_in_a_cohort(encoder, sites, site_of, start, small_job) -> None:
    other = SharedAdapter(random_factors(encoder, 5, 0.05))
    shared = [start, start, other, start, other, start]
    tasks = [
        PersonalTask(d, own, 30 + n) for n, (d, own) in enumerate(zip(sites, shared, strict=True))
    ]
    empty = PersonalTask(site_of("y", "paired", (1, 4, 4)), start, 1)
    *together, refused = personalize(encoder, [*tasks, empty], small_job)
    assert refused.reason == "too-few-records"
    again = personalize(encoder, [*tasks, empty], small_job)
    for task, found, repeated in zip(tasks, together, again, strict=False):
        (alone,) = personalize(encoder, [task], small_job)
        assert {encoder.layout.tower_of(name) for name in found.adapter} == set(task.data.towers)
        assert (
            max(float(np.abs(a).max()) for n, a in alone.adapter.items() if ".lora_B" in n) > 1e-3
        )
        assert distance(found.adapter, alone.adapter) <= 1e-5
        assert found.alpha == alone.alpha
        assert found.validation == pytest.approx(alone.validation, rel=1e-5)
        assert distance(found.adapter, repeated.adapter) == 0


# Memory


@pytest.fixture
def memory(monkeypatch):
    """Let a step of more than so many samples fail as torch does on a GPU, or on a CPU."""

    def limit(most: int, error: Exception | None = None) -> list[int]:
        sizes: list[int] = []

        def encode_little(encoder, parts, adapters):
            size = sum(max(len(p.batch.with_image), len(p.batch.with_text)) for p in parts)
            sizes.append(size)
            if size > most:
                raise error or torch.OutOfMemoryError("CUDA out of memory")
            return encode(encoder, parts, adapters)

        monkeypatch.setattr(fitting, "encode", encode_little)
        return sizes

    return limit


CPU_ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [None, MemoryError(), CPU_ERROR])
def test_out_of_memory_halves_the_cohort_and_changes_no_number(
    encoder, sites, start, epoch_job, memory, caplog, error
) -> None:
    tasks = tasks_of(sites, start)
    expected = train_shared(encoder, tasks, epoch_job)
    sizes = memory(40, error)
    with caplog.at_level(logging.WARNING):
        found = train_shared(encoder, tasks, epoch_job)
    assert max(size for size in sizes if size <= 40) > 16  # still some at once
    for one, two in zip(found, expected, strict=True):
        assert distance(one.factors, two.factors) <= 1e-5
        assert one.steps == two.steps
    assert "out of memory with 6 sites at once; going on with 3" in caplog.text


def test_out_of_memory_in_a_later_step_begins_anew(
    encoder, sites, start, small_job, monkeypatch
) -> None:
    tasks = tasks_of(sites[:2], start)
    expected = train_shared(encoder, tasks, small_job)
    calls = []

    def third_time(encoder, parts, adapters):
        calls.append(len(parts))
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return encode(encoder, parts, adapters)

    monkeypatch.setattr(fitting, "encode", third_time)
    for one, two in zip(train_shared(encoder, tasks, small_job), expected, strict=True):
        assert distance(one.factors, two.factors) <= 1e-5
    assert calls == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_a_site_that_does_not_fit_alone_is_told_what_to_lower(
    encoder, sites, start, epoch_job, memory, caplog
) -> None:
    tasks = tasks_of(sites, start)
    expected = train_shared(encoder, tasks, epoch_job)
    memory(10)
    with caplog.at_level(logging.WARNING):
        found = train_shared(encoder, tasks, epoch_job)
    fits = [not isinstance(result, TrainingError) for result in found]
    assert fits == [False, False, True, True, True, False]
    for result, wanted in zip(found, expected, strict=True):
        if isinstance(result, TrainingError):
            assert result.reason == "out-of-memory"
            for words in ("train.batch_size", "model.max_tokens", "top:2", "bfloat16"):
                assert words in str(result)
                assert words in caplog.text  # only the reason code leaves a site
        else:
            assert distance(result.factors, wanted.factors) <= 1e-5


def test_so_it_does_for_local_and_personal_training(
    encoder, sites, start, epoch_job, memory
) -> None:
    chosen = [(data, 3) for data in sites[:3]]
    tasks = [PersonalTask(data, start, 3) for data in sites[:3]]
    alone = train_local(encoder, chosen, epoch_job)
    personal = personalize(encoder, tasks, epoch_job)
    memory(20)
    for one, two in zip(train_local(encoder, chosen, epoch_job), alone, strict=True):
        assert distance(one.factors, two.factors) <= 1e-5
    for one, two in zip(personalize(encoder, tasks, epoch_job), personal, strict=True):
        assert distance(one.adapter, two.adapter) <= 1e-5
    memory(1)
    locals_, residuals = (
        train_local(encoder, chosen, epoch_job),
        personalize(encoder, tasks, epoch_job),
    )
    for results in (locals_, residuals):
        assert [getattr(result, "reason", None) for result in results] == ["out-of-memory"] * 3


def test_any_other_error_is_not_taken_for_a_lack_of_memory(
    encoder, sites, start, epoch_job, memory
) -> None:
    memory(20, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train_shared(encoder, tasks_of(sites, start), epoch_job)
