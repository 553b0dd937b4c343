import math

import numpy as np
import pytest

from shared.metrics.bootstrap import difference, estimate, resample, stretch


def mean_of(values, weights):
    return (weights @ values) / weights.sum(1)


def test_row_zero_is_the_data_themselves():
    resamples = resample(np.array([7, 3, 3, 9]), 50, seed=1)
    assert resamples.patients.tolist() == [3, 7, 9]
    assert resamples.weights.shape == (51, 3)
    assert resamples.weights[0].tolist() == [1, 1, 1]
    assert (resamples.weights.sum(1) == 3).all()


def test_records_of_a_patient_are_drawn_together():
    patients = np.array([7, 3, 3, 9])
    weights = resample(patients, 200, seed=1).of(patients)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 0] != weights[:, 1]).any()


def test_the_order_of_records_does_not_matter():
    patients = np.array([5, 1, 1, 8, 2])
    order = np.array([3, 0, 4, 2, 1])
    first = resample(patients, 30, seed=4).of(patients)
    second = resample(patients[order], 30, seed=4).of(patients[order])
    np.testing.assert_array_equal(first[:, order], second)


def test_seeds_decide():
    patients = np.arange(20)
    one, same, other = (resample(patients, 30, seed).weights for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    generator, hits, trials = np.random.default_rng(100), 0, 1000
    patients = np.arange(60)
    for trial in range(trials):
        values = generator.normal(1.0, 2.0, 60)
        entry = estimate(mean_of(values, resample(patients, 400, trial).weights), 60)
        hits += entry.low <= 1.0 <= entry.high
    # The percentile interval of 60 patients covers 93.7 % (2000 trials, three times).
    assert 0.915 <= hits / trials <= 0.96


def test_patients_with_many_records_widen_the_interval():
    generator = np.random.default_rng(3)
    patients = np.repeat(np.arange(20), 10)
    values = np.repeat(generator.normal(size=20), 10)
    by_patient = estimate(mean_of(values, resample(patients, 500, 1).of(patients)), 20)
    by_record = estimate(mean_of(values, resample(np.arange(200), 500, 1).weights), 200)
    assert by_patient.high - by_patient.low > 2 * (by_record.high - by_record.low)


def test_a_model_does_not_differ_from_itself():
    values = np.random.default_rng(0).random(101)
    entry = difference(values, values, 30)
    assert (entry.value, entry.low, entry.high, entry.n) == (0, 0, 0, 30)


def test_pairing_removes_what_two_models_share():
    generator, patients = np.random.default_rng(5), np.arange(50)
    hard = generator.normal(size=50)
    weights = resample(patients, 400, 2).weights
    first, second = mean_of(hard + 0.3, weights), mean_of(hard, weights)
    entry = difference(first, second, 50)
    assert entry.value == pytest.approx(0.3)
    assert entry.high - entry.low < 1e-9
    alone = estimate(first, 50, least=-10.0)
    assert alone.high - alone.low > 0.3


def test_resamples_without_a_value_are_left_out_and_the_value_is_inside():
    entry = estimate(np.array([0.1, np.nan, 0.5, 0.5, 0.5]), 100_000)
    assert (entry.low, entry.high) == pytest.approx((0.1, 0.5), abs=1e-4)


def test_intervals_over_few_patients_are_stretched():
    # sqrt(n / (n - 1)) t / z by hand: t = 4.303 and 2.776, z = 1.960
    assert stretch(3) == pytest.approx(math.sqrt(3 / 2) * 4.302653 / 1.959964, abs=1e-5)
    assert stretch(5) == pytest.approx(math.sqrt(5 / 4) * 2.776445 / 1.959964, abs=1e-5)
    assert stretch(160) == pytest.approx(1.0109, abs=1e-3)
    entry = estimate(np.array([0.5, 0.4, 0.6]), 3)
    assert (entry.low, entry.high) == pytest.approx(
        (0.5 - 2.688 * 0.095, 0.5 + 2.688 * 0.095), abs=1e-3
    )
    assert estimate(np.array([0.5, 0.1, 0.9]), 3).low == 0.0
    assert estimate(np.array([0.5, 0.1, 0.9]), 3, least=-1.0).low < 0


def test_a_metric_without_a_value_is_refused():
    with pytest.raises(ValueError, match="finite"):
        estimate(np.array([np.nan, 0.5]), 3)


def test_nothing_to_resample_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        resample(np.array([], dtype=np.int64), 10, 0)
