"""The audit of the site's own sums: right ones pass, three planted bugs never do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client import private_training
from client.batches import Batch
from client.patient_steps import PatientSteps
from shared.privacy.mechanism import Grid, clipped_sum
from shared.privacy.noise import seeded
from simulations.audit.mechanism import Site, audit_steps, one_step

DELTA = 1e-5
RIGHT = PatientSteps(clip=0.5, noise=1.5, rate=0.3, expected=10.0, public=None)


def no_noise(total, grid, draw):
    return total


def a_tenth(total, grid, draw):
    finer = Grid(grid.bits, 10 * grid.per_unit, 10 * grid.limit)
    return NOISED(total, finer, draw)


def no_clipping(changes, norm):
    return clipped_sum(changes, 1e9)


def no_share(total, grid, draw):
    return np.rint(total * grid.per_unit).astype(np.int64)


def a_tenth_of_a_share(total, grid, draw):
    """A grid that is ten times as fine, and its steps taken for the other's."""
    own = STEPS(total, Grid(grid.bits, 10 * grid.per_unit, 10 * grid.limit), draw)
    return np.rint(own / 10).astype(np.int64)


NOISED, STEPS = private_training.noised, private_training.noised_steps
SHARED_BUGS = {
    "no noise": ("noised_steps", no_share),
    "a tenth of the noise": ("noised_steps", a_tenth_of_a_share),
    "no clipping": ("clipped_sum", no_clipping),
}
BUGS = {
    "no noise": ("noised", no_noise),
    "a tenth of the noise": ("noised", a_tenth),
    "no clipping": ("clipped_sum", no_clipping),
}


def single(seed, canaries=1000):
    return audit_steps(one_step(RIGHT), 1, DELTA, canaries=canaries, draw=seeded(seed))


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_stays_below_epsilon_in_one_step(seed):
    for trial in single(seed):
        assert trial.found.bound < trial.claimed
        assert not trial.refuted


def test_what_the_auditor_chose_delta_for_could_have_been_refuted():
    at_claim, chosen = single(0)
    assert at_claim.found.delta == DELTA
    assert chosen.claimed < chosen.found.most


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_stays_below_epsilon_over_steps_with_sampling(seed):
    for trial in audit_steps(RIGHT, 8, DELTA, canaries=300, draw=seeded(seed)):
        assert trial.found.bound < trial.claimed


@pytest.mark.slow
def test_the_bound_stays_below_epsilon_over_a_hundred_seeds():
    bounds = []
    for seed in range(100):
        whole = audit_steps(RIGHT, 8, DELTA, draw=seeded(1000 + seed))
        for trial in (*single(seed), *whole):
            assert trial.found.bound < trial.claimed, seed
        bounds.append(single(seed)[1].found.bound)
    assert np.median(bounds) > 0.3  # it is not that it never shows anything


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("seed", range(5))
def test_planted_bugs_are_flagged_every_time(monkeypatch, bug, seed):
    name, broken = BUGS[bug]
    monkeypatch.setattr(private_training, name, broken)
    assert any(trial.refuted for trial in single(seed))


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_flagged_over_a_hundred_seeds(monkeypatch, bug):
    name, broken = BUGS[bug]
    monkeypatch.setattr(private_training, name, broken)
    for seed in range(100):
        assert any(trial.refuted for trial in single(seed)), seed


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_show_over_many_steps_with_sampling_too(monkeypatch, bug):
    name, broken = BUGS[bug]
    monkeypatch.setattr(private_training, name, broken)
    quiet = replace(RIGHT, noise=4.0)
    trials = audit_steps(quiet, 12, DELTA, draw=seeded(3))
    assert any(trial.refuted for trial in trials)


class Own:
    """Gradients of a site's patients, each of the clipping norm in every direction."""

    def __init__(self, entries):
        self.values = torch.zeros(entries)

    def of(self, patients):
        rng = np.random.default_rng(0)
        for _ in patients:
            yield rng.standard_normal(len(self.values)).astype(np.float32)


def test_the_sites_own_patients_are_in_the_sums_and_break_nothing(monkeypatch):
    site = Site(Own(3000), [Batch(*(np.zeros(0, np.intp),) * 3)] * 40)
    found = audit_steps(one_step(RIGHT), 1, DELTA, site=site, canaries=800, draw=seeded(1))
    assert not any(trial.refuted for trial in found)
    assert found[0].found.canaries == 800
    name, broken = BUGS["a tenth of the noise"]
    monkeypatch.setattr(private_training, name, broken)
    found = audit_steps(one_step(RIGHT), 1, DELTA, site=site, canaries=800, draw=seeded(1))
    assert any(trial.refuted for trial in found)


def test_there_are_no_more_canaries_than_numbers():
    site = Site(Own(50), [])
    assert audit_steps(RIGHT, 1, DELTA, site=site, draw=seeded(1))[0].found.canaries == 50


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shares", [2, 5])
def test_noise_that_sites_add_together_hides_as_much(shares, seed):
    steps = one_step(RIGHT)
    trials = audit_steps(steps, 1, DELTA, shares=shares, canaries=1000, draw=seeded(seed))
    assert not any(trial.refuted for trial in trials)


@pytest.mark.parametrize("bug", SHARED_BUGS)
def test_each_planted_bug_is_found_where_sites_add_noise_together(bug, monkeypatch):
    monkeypatch.setattr(private_training, *SHARED_BUGS[bug])
    trials = audit_steps(one_step(RIGHT), 1, DELTA, shares=2, canaries=1000, draw=seeded(0))
    assert any(trial.refuted for trial in trials)
