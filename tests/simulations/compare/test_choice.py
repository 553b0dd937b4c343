"""The learning rate is chosen by the main metric, or by validation loss where there is none."""

import math

from simulations.compare.choice import Tried, choose


def test_without_the_metric_the_least_validation_loss_wins_and_of_equals_the_smallest_rate():
    tried = [Tried(0.1, 3.0, 2.0), Tried(0.2, 3.0, 1.5), Tried(0.4, 3.0, 1.5)]
    assert choose(tried).rate == 0.2
    assert choose(tried).note == ""
    assert choose(tried[:2]).note == ""


def test_a_choice_at_the_end_of_the_grid_is_said():
    tried = [Tried(0.1, 3.0, 2.0), Tried(0.2, 3.0, 1.5), Tried(0.4, 3.0, 1.0)]
    assert "end of the grid" in choose(tried).note


def test_rates_that_diverge_are_left_out_and_said_if_all_do():
    tried = [Tried(0.1, 3.0, None), Tried(0.2, 3.0, 2.9), Tried(0.4, 3.0, math.nan)]
    assert choose(tried).rate == 0.2
    lost = choose([tried[0], tried[2]])
    assert (lost.rate, lost.note) == (None, "diverged at every rate (0.1, 0.4)")


def test_a_grid_that_is_worse_than_the_base_everywhere_is_said_not_hidden():
    found = choose([Tried(0.1, 1.0, 1.2), Tried(0.2, 1.0, 1.1)])
    assert found.rate == 0.2
    assert found.note == "loss above the base's at every rate (0.1, 0.2)"


def measured(rate: float, level: float | None, loss: float | None = 1.0) -> Tried:
    return Tried(rate, 3.0, loss, base_level=0.7, level=level)


def test_the_main_metric_decides_whatever_the_loss_says():
    tried = [measured(0.1, 0.71, 2.0), measured(0.2, 0.74, 1.5), measured(0.4, 0.69, 1.0)]
    assert choose(tried).rate == 0.2
    assert choose(tried, lower_is_better=True).rate == 0.4
    assert choose([measured(0.1, 0.72), measured(0.2, 0.72)]).rate == 0.1


def test_the_loss_decides_if_a_finite_run_has_no_metric():
    tried = [measured(0.1, 0.71, 2.0), measured(0.2, None, 1.5), measured(0.4, 0.69, 1.8)]
    assert choose(tried).rate == 0.2


def test_a_rate_that_diverged_has_no_metric_and_is_left_out():
    assert choose([measured(0.1, 0.71), measured(0.2, None, None)]).rate == 0.1


def test_a_metric_below_the_base_at_every_rate_is_said():
    found = choose([measured(0.1, 0.69), measured(0.2, 0.68), measured(0.4, 0.60)])
    assert found.rate == 0.1
    assert found.note == "the main metric was worse than the base's at every rate (0.1, 0.2, 0.4)"
