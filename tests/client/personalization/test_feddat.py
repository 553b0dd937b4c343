"""What a teacher and a student say of each other, by hand, and who of them learns."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch

from client.batches import Batch
from client.encoding import Features
from client.personalization import PersonalTask
from client.personalization.feddat import disagreement, feddat
from client.training import fresh_adapter
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.stack import AdapterStack

NONE = np.zeros(0, dtype=np.intp)


def pairs(count: int) -> Batch:
    return Batch(np.arange(count), NONE, NONE)


def features(image: list[list[float]], text: list[list[float]]) -> Features:
    return Features(torch.tensor(image, requires_grad=True), torch.tensor(text, requires_grad=True))


def test_kl_of_two_pairs_by_hand() -> None:
    # The goal tells pairs apart: similarities 1 and 0; the student's are all the same.
    goal = features([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    mine = features([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]])
    scale = 6.0  # over temperature 3: logits 2 and 0
    p = math.exp(2) / (math.exp(2) + 1)
    kl = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    found = disagreement(mine, goal, pairs(2), scale)
    assert found.item() == pytest.approx(9 * kl, rel=1e-5)  # both directions alike; times 3 ** 2
    found.backward()
    assert float(mine.image.grad.abs().max()) > 0
    assert goal.image.grad is None


def test_who_agrees_has_nothing_to_learn_and_who_differs_has() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(8, 4, generator=generator), dim=1)
        for _ in range(2)
    )
    same = Features(image, text)
    other = Features(image, text.flip(0))
    batch = Batch(np.arange(4), np.arange(4, 8), np.arange(8, 12))  # lone records as well
    assert float(disagreement(same, same, batch, 10.0)) == pytest.approx(0, abs=1e-6)
    assert float(disagreement(other, same, batch, 10.0)) > 0.1


def test_teacher_and_student_both_learn_and_what_is_frozen_stays(
    site_of, small_job: JobConfig, monkeypatch
) -> None:
    encoder = DualEncoder.load(small_job.model, small_job.lora)
    shared = fresh_adapter(encoder.layout, 1)
    stacks: list[AdapterStack] = []
    make = encoder.new_stack

    def watched(*arguments: int) -> AdapterStack:
        stacks.append(make(*arguments))
        return stacks[-1]

    monkeypatch.setattr(encoder, "new_stack", watched)
    base = {name: p.clone() for name, p in encoder.model.named_parameters()}
    factors = {name: array.copy() for name, array in shared.factors.items()}
    (found,) = feddat(encoder, [PersonalTask(site_of(), shared, 3)], small_job)
    teacher, student = (stack.read(0) for stack in stacks)
    for one in (teacher, student):
        moved = [np.abs(one[name] - array).max() for name, array in factors.items()]
        assert min(moved) > 1e-4
    assert max(np.abs(teacher[name] - student[name]).max() for name in factors) > 1e-3
    for name, array in factors.items():
        np.testing.assert_array_equal(shared.factors[name], array)
    for name, parameter in encoder.model.named_parameters():
        assert torch.equal(parameter, base[name])
    rank = encoder.layout.rank  # what is kept is the teacher's half
    name = next(name for name in factors if ".lora_B" in name)
    np.testing.assert_array_equal(found[name][:, :rank], np.float32(0.5) * teacher[name])


def test_both_see_the_same_pictures(site_of, small_job, monkeypatch) -> None:
    """At the start both are the shared model: with one function, they agree on every record."""
    module = importlib.import_module("client.personalization.feddat")  # not its function
    seen: list[float] = []
    plain = module.disagreement

    def noted(*arguments: object) -> torch.Tensor:
        seen.append(plain(*arguments).item())
        return plain(*arguments)

    monkeypatch.setattr(module, "disagreement", noted)
    encoder = DualEncoder.load(small_job.model, small_job.lora)
    feddat(encoder, [PersonalTask(site_of(), fresh_adapter(encoder.layout, 1), 3)], small_job)
    assert seen[:2] == [pytest.approx(0, abs=1e-5)] * 2
    assert max(seen[2:]) > 1e-4


def test_a_site_that_diverges_fails_alone(site_of, small_job, monkeypatch) -> None:
    module = importlib.import_module("client.personalization.feddat")
    plain = module.disagreement
    calls = itertools.count()

    def broken(*arguments: object) -> torch.Tensor:
        first_site = next(calls) % 2 == 0
        return plain(*arguments) * (math.nan if first_site else 1.0)

    encoder = DualEncoder.load(small_job.model, small_job.lora)
    shared = fresh_adapter(encoder.layout, 1)
    tasks = [PersonalTask(site_of(name, seed=seed), shared, 3) for seed, name in enumerate("ab")]
    _, wanted = feddat(encoder, tasks, small_job)
    monkeypatch.setattr(module, "disagreement", broken)
    failed, found = feddat(encoder, tasks, small_job)
    assert failed.reason == "loss-not-finite"
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
