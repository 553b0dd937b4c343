"""Sites that train fewer columns: side by side with others as alone, and nothing else moves."""

import dataclasses

import numpy as np
import pytest

from client.received import join_received
from client.training import SiteTask, TrainedAdapter, fresh_adapter, train_shared
from shared.adapter import SharedAdapter, factor_name, factor_of
from shared.config import JobConfig
from shared.errors import AdapterMismatchError
from shared.messages import Request
from shared.model.encoder import DualEncoder
from shared.parts import part_digests, parts_of
from shared.ranks import filled, leading

RANKS = (1, 4, 2, 3)  # of 4
KINDS = ("paired", "image", "unpaired", "paired")


@pytest.fixture(scope="module")
def encoder(small_job):
    return DualEncoder.load(small_job.model, small_job.lora)


@pytest.fixture(scope="module")
def start(encoder):
    rng = np.random.default_rng(3)
    factors = fresh_adapter(encoder.layout, 3).factors
    return SharedAdapter(
        {
            n: a if factor_of(n) == "A" else (0.05 * rng.standard_normal(a.shape)).astype("f4")
            for n, a in factors.items()
        }
    )


@pytest.fixture(scope="module")
def tasks(site_of, start):
    return [
        SiteTask(site_of(str(n), kind, (40, 8, 4), seed=n), start, ("A", "B"), 7 + n, 1, rank=rank)
        for n, (kind, rank) in enumerate(zip(KINDS, RANKS, strict=True))
    ]


def changed(job, **values):
    return job.model_copy(update={"train": job.train.model_copy(update=values)})


def distance(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.mark.parametrize(
    "values", [{}, {"weight_decay": 0.3, "proximal": 0.5, "max_gradient_norm": 0.05}], ids=str
)
def test_a_cohort_of_all_ranks_trains_every_site_as_alone(encoder, tasks, small_job, values):
    job = changed(small_job, **values)
    for task, together in zip(tasks, train_shared(encoder, tasks, job), strict=True):
        (alone,) = train_shared(encoder, [task], job)
        assert isinstance(together, TrainedAdapter)
        assert distance(together.factors, alone.factors) <= 1e-5
        assert together.gradient_norms == pytest.approx(alone.gradient_norms, rel=1e-3)
        for name, array in together.factors.items():
            within = leading({name: array}, task.rank)[name]
            was = leading({name: task.start.factors[name]}, task.rank)[name]
            assert float(np.abs(within - was).max()) > 1e-4
            beyond = (array - task.start.factors[name]).reshape(array.shape)
            beyond = beyond[task.rank :] if factor_of(name) == "A" else beyond[:, task.rank :]
            assert not beyond.any()  # not a bit moved


@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_training_at_that_rank_with_the_rest_in_the_base(
    encoder, tasks, start, small_job, rank
):
    """The same site on an encoder whose adapters have its rank, at the run's scaling."""
    job = changed(small_job, proximal=0.1)
    task = dataclasses.replace(tasks[0], rank=rank)
    (found,) = train_shared(encoder, [task], job)
    lora = job.lora.model_copy(update={"rank": rank, "alpha": job.lora.scaling * rank})
    own_job = JobConfig.model_validate(job.model_dump(mode="json") | {"lora": lora.model_dump()})
    small = DualEncoder.load(own_job.model, own_job.lora)
    assert small.layout.scaling == encoder.layout.scaling
    rest = {
        n: np.ascontiguousarray(a[rank:] if factor_of(n) == "A" else a[:, rank:])
        for n, a in start.factors.items()
    }
    cut = SharedAdapter(dict(leading(start.factors, rank)), rest)
    (wanted,) = train_shared(small, [dataclasses.replace(task, start=cut, rank=None)], own_job)
    assert distance(wanted.factors, leading(found.factors, rank)) <= 1e-5
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert found.gradient_norms == pytest.approx(wanted.gradient_norms, rel=1e-4)


def received(encoder, small_job, shared, site, kind="train"):
    tree = small_job.model_dump(mode="json")
    tree["lora"]["ranks"] = {"north": 2}
    job = JobConfig.model_validate(tree)
    request = Request(
        kind=kind,
        run="r",
        round=1,
        site=site,
        base_sha256=encoder.base_sha256,
        job_sha256=job.digest(),
        job=job,
        parts=part_digests(shared),
    )
    parts = {"residual": {}, **parts_of(shared)}
    return join_received(request, parts, encoder.layout)


def test_what_a_site_is_sent_has_its_rank_or_the_runs_and_no_other(encoder, small_job, start):
    small = SharedAdapter(dict(leading(start.factors, 2)))
    found = received(encoder, small_job, small, "north")
    for name, array in filled(small.factors, encoder.layout).items():
        np.testing.assert_array_equal(found.factors[name], array)
    whole = received(encoder, small_job, start, "north")
    assert distance(whole.factors, start.factors) == 0
    for shared, site, kind in (
        (small, "south", "train"),
        (small, "north", "evaluate"),
        (SharedAdapter(dict(leading(start.factors, 3))), "north", "train"),
    ):
        with pytest.raises(AdapterMismatchError, match="expected shape"):
            received(encoder, small_job, shared, site, kind)


def test_a_stack_knows_what_lies_beyond_each_rows_rank(encoder):
    stack = encoder.new_stack(2)
    assert stack.beyond([4, 4]) is None
    mask = stack.beyond([4, 1])
    assert not mask[0].any()
    stack.values[1] = mask[1].float()
    layer = encoder.layout.layers[0]
    for name, array in stack.read(1).items():
        if name == factor_name(layer.module, "A"):
            assert array.sum(axis=1).tolist() == [0, *[layer.inputs] * 3]
        if name == factor_name(layer.module, "B"):
            assert array.sum(axis=0).tolist() == [0, *[layer.outputs] * 3]
