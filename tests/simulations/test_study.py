"""The study's arithmetic, on numbers that can be checked by hand."""

import math

import pytest

from shared.config import load_job
from simulations.simulate import default_job
from simulations.study import above_zero, claim, interval, jobs, markdown, not_below_zero


def test_the_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1.0 / math.sqrt(3)  # t(0.975, 2 degrees) times the standard error
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_one_seed_supports_no_claim():
    assert claim("x", [0.5], above_zero).verdict == "open"
    assert claim("x", [-0.5], not_below_zero).verdict == "open"


def test_a_claim_is_judged_by_its_interval():
    assert claim("x", [0.1, 0.11, 0.12], above_zero).verdict == "yes"
    assert claim("x", [0.1, -0.2, 0.3], above_zero).verdict == "open"
    assert claim("x", [-0.1, -0.11, -0.12], above_zero).verdict == "no"
    assert claim("x", [-0.1, 0.05, 0.1], not_below_zero).verdict == "yes"
    assert claim("x", [-0.1, -0.11, -0.12], not_below_zero).verdict == "no"


def test_the_run_without_unimodal_sites_differs_in_nothing_else():
    job = load_job(default_job())
    full, without = jobs(job, 3)["all"], jobs(job, 3)["without-unimodal"]
    assert without.data.sites == [
        "university", "klinikum", "intensive-care", "valley-clinic", "trauma-centre",
    ]  # fmt: skip
    assert (full.train, full.aggregate, full.lora, full.seed) == (
        without.train, without.aggregate, without.lora, without.seed,
    )  # fmt: skip


def test_a_claim_that_does_not_hold_is_printed():
    page = markdown([claim("shared minus base", [-0.1, -0.2], above_zero)], "t", "command")
    assert "$ command" in page
    assert "**no**" in page
