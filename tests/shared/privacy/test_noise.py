"""Noise in whole steps: Gaussian to the bound that the accountant counts with."""

import mpmath
import numpy as np
import pytest
from scipy import stats

from shared.privacy import noise
from shared.privacy.noise import BITS, LEAST_BITS, RELATIVE_ERROR, gaussian_steps, seeded

mpmath.mp.prec = 120


def test_noise_is_gaussian_of_the_nominal_deviation():
    for bits in (BITS, LEAST_BITS):
        drawn = (gaussian_steps(400_000, bits, seeded(bits)) + 0.5) / 2**bits
        assert drawn.std() == pytest.approx(1, abs=0.005)
        assert abs(drawn.mean()) < 0.006
        assert stats.kstest(drawn, "norm").pvalue > 1e-4
        assert stats.kurtosis(drawn) == pytest.approx(0, abs=0.04)


def test_steps_within_a_cell_are_spread_over_all_of_it():
    drawn = gaussian_steps(200_000, BITS, seeded(2))
    last_bits = np.bincount(drawn & 255, minlength=256)
    assert stats.chisquare(last_bits).pvalue > 1e-4
    assert (drawn < 0).mean() == pytest.approx(0.5, abs=0.006)


def test_every_cell_is_as_likely_as_it_should_be():
    """Against 120 bits: within nine deviations the whole bound, farther out the looser one."""

    def tail(x):
        return mpmath.erfc(mpmath.mpf(x) / mpmath.sqrt(2))

    for deviation in (0, 1, 4, 8, 13):
        ends = [0, *(int(end) for end in noise._thresholds(deviation)), 2**64]
        edges = [tail(deviation + mpmath.mpf(cell) / 1024) for cell in range(1025)] + [0]
        errors = [
            abs(mpmath.mpf(ends[cell + 1] - ends[cell]) / 2**64
                * edges[0] / (edges[cell] - edges[cell + 1]) - 1)
            for cell in range(0, 1025, 64)
        ]  # fmt: skip
        assert max(errors) < (RELATIVE_ERROR if deviation < 9 else 2.0**-37)


def test_a_draw_beyond_one_deviation_goes_on_to_the_next():
    farthest = b"\xff" * 8
    words = iter([farthest, farthest, bytes(8)])
    assert noise._cells(1, lambda _: next(words)) == [2 * 1024]
    assert noise._cells(1, lambda count: b"\xff" * count) == [14 * 1024 - 1]


def test_candidates_are_accepted_by_the_density_ratio():
    """The last step of a cell eight deviations out, against ``exp(-x**2 / 2)``."""
    below, step = 8 << BITS, 2**14 - 1
    ratio = np.exp(-(((below + step + 0.5) / 2**BITS) ** 2 - ((below + 0.5) / 2**BITS) ** 2) / 2)
    for share, accepted in ((ratio - 1e-9, True), (ratio + 1e-9, False)):
        uniform = int(share * 2**53) << 11
        words = iter(
            [step.to_bytes(2, "little"), uniform.to_bytes(8, "little"), bytes(2), bytes(8)]
        )
        found = noise._within(np.array([below]), BITS, lambda _, w=words: next(w))
        assert found == [step if accepted else 0]


def test_noise_comes_from_the_operating_system(monkeypatch):
    asked = []
    with monkeypatch.context() as patched:
        patched.setattr(np.random, "default_rng", None)
        first, second = gaussian_steps(1000), gaussian_steps(1000)
    assert (first != second).mean() > 0.99
    gaussian_steps(100, draw=lambda count: asked.append(count) or noise.operating_system(count))
    assert sum(asked) > 1800
    assert noise.operating_system is __import__("os").urandom


def test_a_seed_repeats():
    assert (gaussian_steps(100, draw=seeded(3)) == gaussian_steps(100, draw=seeded(3))).all()


@pytest.mark.parametrize("bits", [LEAST_BITS - 1, BITS + 1])
def test_refuses_grids_without_an_error_bound(bits):
    with pytest.raises(ValueError, match="expected"):
        gaussian_steps(1, bits)
