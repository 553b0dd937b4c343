"""What honest sites cannot have summed up to is refused, whatever it is."""

import numpy as np
import pytest
from fake_federation import LAYOUT

from server.sum_gate import objection_to_sum
from shared.adapter import AdapterUpdate
from shared.config import AggregateConfig, JobConfig
from shared.fixedpoint import choose_scale, encode
from shared.privacy.mechanism import IN_SINGLE_PRECISION, distributed_grid, noised_steps
from shared.secure_round import MEASURES, measures_in

WEIGHTS = {"image": 7, "text": 5}
CLIP = 16.0
JOB = JobConfig(name="sums", aggregate=AggregateConfig(clip_norm=CLIP))
SCALE = choose_scale(7, CLIP, 3)


def total_of(weights=None, metrics=None, **changes):
    """The sum of three honest sites that all moved as far as they may, with changes."""
    shapes = {n: LAYOUT.shape_of(n) for n in LAYOUT.names(("B",))}
    entries = {
        t: sum(np.prod(shapes[n]) for n in shapes if LAYOUT.tower_of(n) == t) for t in WEIGHTS
    }
    mean = {
        n: np.full(s, CLIP / np.sqrt(entries[LAYOUT.tower_of(n)]), np.float32)
        for n, s in shapes.items()
    }
    delta = dict(encode(mean, lambda name: WEIGHTS[LAYOUT.tower_of(name)], SCALE))
    told = {each.name: 0.0 for each in MEASURES} | {"loss": 3.0, "with_loss": 3.0}
    return AdapterUpdate("sum", weights or WEIGHTS, delta | changes, SCALE, told | (metrics or {}))


def reason(update):
    return objection_to_sum(update, LAYOUT, WEIGHTS, JOB, sites=3)


def test_what_honest_sites_may_send_at_most_passes():
    assert reason(total_of()) is None


def test_what_they_cannot_have_sent_does_not():
    name = LAYOUT.names(("B",))[0]
    shape = LAYOUT.shape_of(name)
    assert reason(total_of(**{name: np.full(shape, 2**31 - 1, np.uint32)})) == "out-of-range"
    third = np.full(shape, int(CLIP * WEIGHTS["image"] * SCALE / 2), np.uint32)
    assert reason(total_of(**{name: third})) == "norm-too-large"
    assert reason(total_of(weights={"image": 8, "text": 5})) == "wrong-weights"
    assert reason(total_of(weights={"image": 7})) == "wrong-weights"


@pytest.mark.parametrize(
    "metrics",
    [{"loss": 1e4}, {"loss": -1e4}, {"clipped": -9.0}, {"with_loss": 4.0}, {"with_loss": -1.0}],
)
def test_measures_that_three_sites_cannot_add_up_to_are_refused(metrics):
    assert reason(total_of(metrics=metrics)) == "metrics"


NOISED = JobConfig.model_validate({
    "name": "noised", "proxy": {"phantoms": 64},
    "privacy": {
        "differential_privacy": True, "secure_aggregation": True, "mode": "distributed",
        "noise_multiplier": 1.0,
    },
})  # fmt: skip


def noised_sum(times=1.0, expected=30.0):
    """Three sites' shares of the noise, and nothing else in the sum."""
    grid = distributed_grid(LAYOUT.entries(("B",)), IN_SINGLE_PRECISION, 1.0, parties=3, missing=1)
    delta = {}
    for name in LAYOUT.names(("B",)):
        shape = LAYOUT.shape_of(name)
        noise = sum(noised_steps(np.zeros(np.prod(shape)), grid) for _ in range(3))
        delta[name] = np.rint(times * noise).astype(np.int64).astype(np.uint32).reshape(shape)
    told = {each.name: 0.0 for each in measures_in(NOISED)} | {"expected": expected}
    return AdapterUpdate("sum", {"image": 3, "text": 3}, delta, grid.per_unit, told)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (noised_sum(), None),
        (noised_sum(times=60.0), "norm-too-large"),
        (noised_sum(expected=-5.0), "metrics"),
        (noised_sum(expected=1e8), "metrics"),
    ],
)
def test_a_sum_of_noised_gradients_may_be_as_long_as_noise_is(update, reason):
    weights = {"image": 3, "text": 3}
    assert objection_to_sum(update, LAYOUT, weights, NOISED, sites=3) == reason
