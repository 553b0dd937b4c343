"""The learning rate is chosen by validation loss alone."""

import math

from simulations.compare.choice import Tried, choose


def test_the_least_validation_loss_wins_and_of_equals_the_smallest_rate():
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
    assert found.note == "validation loss above the base's at every rate (0.1, 0.2)"
