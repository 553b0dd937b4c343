"""Distillation at the server: it learns from the sites, only where they trained, or not at all."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.training import SiteTask, fresh_adapter, train_shared
from server.proxy.distillation import ProxyDistillation, site_adapter
from server.proxy.pairs import ProxyPairs
from server.proxy.step import RoundUpdates
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    LayerShape,
    SharedAdapter,
    factor_name,
    factor_of,
)
from shared.config import JobConfig
from shared.fixedpoint import choose_scale, encode
from shared.model.encoder import DualEncoder

STEPS = 30


@pytest.fixture(scope="module")
def job(small_job):
    tree = small_job.model_dump(mode="json")
    tree["train"] |= {"steps": 60, "schedule": "constant", "learning_rate": 1e-2}
    tree["aggregate"] |= {"rule": "fedavg", "fold_every": 0}
    tree["proxy"] |= {"folder": "public", "steps": STEPS, "weight": 0.1}
    return JobConfig.model_validate(tree)


@pytest.fixture(scope="module")
def encoder(job):
    return DualEncoder.load(job.model, job.lora)


@pytest.fixture(scope="module")
def start(encoder):
    return fresh_adapter(encoder.layout, 1)


def pairs_from(split):
    return ProxyPairs(split.pixels, split.texts, split.patients)


@pytest.fixture(scope="module")
def public(site_of):
    return pairs_from(site_of("public", counts=(96, 8, 8), seed=50).splits["train"])


@pytest.fixture(scope="module")
def distillation(job, public):
    """With an encoder of its own, as at a server."""
    return ProxyDistillation(DualEncoder.load(job.model, job.lora), public, job)


def trained(encoder, start, job, site, factors=("A", "B")):
    """The change that a site's training makes."""
    (found,) = train_shared(encoder, [SiteTask(site, start, factors, seed=3, round=1)], job)
    return {name: found.factors[name] - start.factors[name] for name in found.factors}


def update_of(layout, site, change, weight=2):
    towers = {layout.tower_of(name): weight for name in change}
    scale = choose_scale(8, 16.0, 4)
    return AdapterUpdate(site, towers, encode(change, lambda _: weight, scale), scale, {})


def came_of(start, updates, factors=("A", "B"), number=1):
    came = RoundUpdates(number, start, factors)
    assert list(came.keep(updates)) == list(updates)
    return came


@pytest.fixture(scope="module")
def updates(encoder, start, job, site_of):
    """Two sites that learned from pairs like the public ones."""
    sites = [site_of(name, counts=(96, 8, 8), seed=seed) for seed, name in ((7, "b"), (8, "a"))]
    return [
        update_of(encoder.layout, site.name, trained(encoder, start, job, site)) for site in sites
    ]


def test_the_shared_adapter_learns_what_the_sites_know(distillation, start, updates):
    # The aggregated adapter is made to know nothing, so that all there is comes from the sites.
    after, step = distillation.distil(start, came_of(start, updates))
    assert step.accepted
    assert step.after < step.before - 0.3
    assert after.sha256() != start.sha256()


def test_the_same_arguments_give_the_same_bits_whatever_was_done_before(
    distillation, job, public, start, updates
):
    first, step = distillation.distil(start, came_of(start, updates))
    other, _ = distillation.distil(start, came_of(start, updates, number=2))
    assert other.sha256() != first.sha256(), "every round has its own batches"
    fresh = ProxyDistillation(DualEncoder.load(job.model, job.lora), public, job)
    again, same = fresh.distil(start, came_of(start, updates[::-1]))
    assert (again.sha256(), same) == (first.sha256(), step)


def test_sites_that_learned_rubbish_are_not_followed(distillation, encoder, start, job, site_of):
    site = site_of("a", counts=(96, 8, 8), seed=7)
    split = site.splits["train"]
    # Whoever says "bright" means dark, and the other way round: learned well, and all wrong.
    swap = {"bright": "dark", "dark": "bright"}
    texts = tuple(" ".join(swap.get(word, word) for word in text.split()) for text in split.texts)
    poisoned = replace(site, splits={**site.splits, "train": replace(split, texts=texts)})
    update = update_of(encoder.layout, "a", trained(encoder, start, job, poisoned))
    after, step = distillation.distil(start, came_of(start, [update]))
    assert not step.accepted
    assert step.after >= step.before
    assert after is start


def test_a_poisoned_public_set_is_refused_by_its_own_held_out_pairs(
    job, public, start, updates, distillation
):
    good, _ = distillation.distil(start, came_of(start, updates))
    rng = np.random.default_rng(0)
    mixed = replace(public, texts=tuple(public.texts[row] for row in rng.permutation(len(public))))
    poisoned = ProxyDistillation(DualEncoder.load(job.model, job.lora), mixed, job)
    after, step = poisoned.distil(good, came_of(start, updates))
    assert not step.accepted
    assert after is good


def test_a_step_that_is_not_finite_is_thrown_away(distillation, start, updates, monkeypatch):
    nothing = torch.tensor(float("nan"))
    monkeypatch.setattr("server.proxy.distillation.crd", lambda image, *_: nothing * image.sum(1))
    after, step = distillation.distil(start, came_of(start, updates))
    assert (step.after, step.accepted) == (None, False)
    assert after is start


def test_only_the_factor_that_the_sites_trained_moves(distillation, encoder, start, job, site_of):
    site = site_of("a", counts=(96, 8, 8), seed=7)
    change = trained(encoder, start, job, site, ("B",))
    update = update_of(encoder.layout, "a", change)
    after, step = distillation.distil(start, came_of(start, [update], ("B",)))
    assert step.accepted
    for name, values in after.factors.items():
        same = np.array_equal(values, start.factors[name])
        assert same == (factor_of(name) == "A"), name


def test_a_site_of_one_tower_joins_in_that_tower_only(distillation, encoder, start, updates):
    layout = encoder.layout
    lone = replace(
        updates[0],
        weights={"image": 2},
        delta={n: d for n, d in updates[0].delta.items() if layout.tower_of(n) == "image"},
    )
    after, _ = distillation.distil(start, came_of(start, [lone]))
    for name, values in after.factors.items():
        if layout.tower_of(name) == "text":
            assert np.array_equal(values, start.factors[name]), name
    # Beside a paired site it changes the images' teacher, and the texts' not at all.
    both, _ = distillation.distil(start, came_of(start, [updates[1], lone]))
    alone, _ = distillation.distil(start, came_of(start, [updates[1]]))
    assert both.sha256() != alone.sha256()


def test_a_sites_adapter_is_what_it_received_plus_its_change() -> None:
    layout = AdapterLayout((LayerShape("v.q", "image", 2, 3),), rank=1, scaling=1.0)
    a, b = factor_name("v.q", "A"), factor_name("v.q", "B")
    received = SharedAdapter(
        {a: np.ones((1, 3), np.float32), b: np.zeros((2, 1), np.float32)}, folds=2
    )
    # Weight 3 and scale 8: a change of 1/2 travels as 3 * 8 / 2 = 12, one of -1/4 as -6.
    steps = np.array([[12], [-6]], np.int32).view(np.uint32)
    found = site_adapter(received, layout, AdapterUpdate("s", {"image": 3}, {b: steps}, 8.0, {}))
    assert found.factors[b].tolist() == [[0.5], [-0.25]]
    assert np.array_equal(found.factors[a], received.factors[a])
    assert found.folds == 2


def test_a_site_of_lower_rank_has_its_own_columns_only() -> None:
    layout = AdapterLayout((LayerShape("v.q", "image", 2, 3),), rank=2, scaling=1.0)
    a, b = factor_name("v.q", "A"), factor_name("v.q", "B")
    received = SharedAdapter({a: np.ones((2, 3), np.float32), b: np.ones((2, 2), np.float32)})
    steps = np.array([[4, 0], [4, 0]], np.int32).view(np.uint32)
    update = AdapterUpdate("s", {"image": 1}, {b: steps}, 8.0, {}, rank=1)
    found = site_adapter(received, layout, update)
    assert found.factors[b].tolist() == [[1.5, 0.0], [1.5, 0.0]]
    assert found.factors[a].tolist() == [[1.0] * 3, [0.0] * 3]


def test_torch_is_imported_by_the_distillation_alone() -> None:
    code = (
        "import sys, server.app, server.rounds, server.proxy.weights, server.proxy.pairs; "
        "assert 'torch' not in sys.modules, 'the server'; "
        "import simulations.simulate; "
        "assert 'server.proxy.distillation' not in sys.modules, 'the simulation'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
