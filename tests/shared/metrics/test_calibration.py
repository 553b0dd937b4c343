import numpy as np
import pytest

from shared.metrics.calibration import (
    bin_of,
    calibration_bins,
    calibration_error,
    prevalence_logit,
    probability,
    wilson,
)


def test_error_by_hand():
    # Bin 0.2..0.3: p .25 twice, one positive, gap .25; bin 0.9..1: p .95 and 1, both positive.
    chances = np.array([[0.25], [0.25], [0.95], [1.0]])
    labels = np.array([[True], [False], [True], [True]])
    expected = 0.5 * 0.25 + 0.5 * 0.025
    assert calibration_error(chances, labels, np.ones((1, 4)))[0] == pytest.approx(expected)


def test_error_agrees_with_its_definition_under_weights():
    generator = np.random.default_rng(0)
    chances, labels = generator.random((50, 3)), generator.random((50, 3)) < 0.4
    weights = generator.integers(0, 3, (4, 50)).astype(float)
    bins = bin_of(chances)
    for row, value in zip(weights, calibration_error(chances, labels, weights), strict=True):
        spread = np.repeat(row[:, None], 3, axis=1)
        expected = 0.0
        for number in range(10):
            inside = (bins == number) * spread
            if inside.sum():
                gap = (inside * chances).sum() / inside.sum() - (
                    inside * labels
                ).sum() / inside.sum()
                expected += inside.sum() / spread.sum() * abs(gap)
        assert value == pytest.approx(expected)


def test_bins_say_what_was_seen():
    chances = np.array([[0.05], [0.05], [1.0]])
    bins = calibration_bins(chances, np.array([[False], [True], [True]]))
    assert [(b.n, b.predicted, b.observed) for b in bins] == [(2, 0.05, 0.5), (1, 1.0, 1.0)]
    assert all(0 <= b.low <= b.observed <= b.high <= 1 for b in bins)


def test_wilson_interval_of_five_in_ten():
    # (p + z2/2n +- z sqrt(p q / n + z2 / 4n2)) / (1 + z2/n), z = 1.96: 0.2366 to 0.7634
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0


def test_prevalence_is_the_probability_of_an_image_that_says_nothing():
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], dtype=np.float32)
    chances = probability(np.zeros((1, 2)), 16.0, prevalence_logit(labels))
    np.testing.assert_allclose(chances, [[0.25, 0.01]])


def test_the_scale_is_the_models():
    assert probability(np.array([[0.1]]), 10.0, np.array([0.0]))[0, 0] == pytest.approx(
        1 / (1 + np.exp(-1))
    )
