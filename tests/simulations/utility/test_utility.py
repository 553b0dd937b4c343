"""The utility table: which cells there are, what distributed noise is, and what is printed."""

import math
from pathlib import Path

import numpy as np
import pytest

from client.private_training import NoisedSum
from shared.errors import ConfigError
from shared.privacy.mechanism import distributed_grid, noised_steps
from simulations.utility.__main__ import JOB, carry_out, chosen_rates, main
from simulations.utility.cells import Score, kept
from simulations.utility.distributed import summed
from simulations.utility.plan import EPSILONS, REFERENCES, ROWS, Cell, Row, best_rate, make_plan
from simulations.utility.table import PAGE, markdown


@pytest.fixture
def plan(tmp_path):
    return make_plan(JOB, 3, tmp_path)


@pytest.fixture
def scores(plan):
    """As if everything had been trained: privacy costs a tenth over epsilon."""
    found = {}
    for row, epsilon in plan.columns():
        for seed in plan.seeds:
            gain = 0.0 if row == "base" else 0.05 - 0.1 / epsilon + 0.001 * seed
            levels = {site: {"r5": 0.4 + gain, "auroc": 0.7} for site in ("a", "b")}
            found[row, epsilon, seed] = Score(digest="x", noise=1.5, levels=levels, seconds=1)
    return found


def test_every_mechanism_meets_every_epsilon_and_every_seed(plan):
    rates = dict.fromkeys(plan.columns(), 0.004)
    cells = plan.compared(rates)
    assert len(cells) == len(plan.seeds) * (len(ROWS) * len(EPSILONS) + len(REFERENCES))
    assert len({cell.name for cell in cells}) == len(cells)
    assert not {cell.seed for cell in plan.tuning()} & set(plan.seeds)
    assert {row.mechanism for row in ROWS} == {"separable", "distributed", "grouped"}
    assert {row.bank for row in ROWS} == {"in-domain", "out-of-domain"}
    assert {row.rule for row in ROWS} == {"altfold", "ffa", "fedavg"}


def test_all_cells_have_the_same_budget_of_steps(plan):
    rates = dict.fromkeys(plan.columns(), 0.004)
    jobs = [plan.job_of(cell) for cell in plan.compared(rates)]
    steps = plan.job.rounds * plan.job.train.steps
    assert {(job.rounds * job.train.steps, job.lora.rank, job.lora.layers) for job in jobs} == {
        (steps, plan.job.lora.rank, plan.job.lora.layers)
    }
    together = {job.rounds for job in jobs if job.privacy.noised_together}
    assert together == {steps}  # every step is a sum of its own
    assert {job.aggregate.weighting for job in jobs} == {"equal"}


def test_references_have_no_privacy_and_rows_their_own_objective(plan):
    assert not plan.job_of(Cell("centralised", math.inf, 1, 0.01)).privacy.differential_privacy
    grouped = plan.job_of(Cell(Row("grouped"), 2.0, 1, 0.01))
    assert (grouped.privacy.objective, grouped.privacy.epsilon) == ("grouped", 2.0)
    both = plan.job_of(Cell(Row("separable", "fedavg"), 2.0, 1, 0.01))
    assert (both.privacy.objective, both.aggregate.rule) == ("separable", "fedavg")


def test_what_is_kept_is_used_once_it_is_of_this_plan(plan):
    cell = Cell("base", math.inf, 1, 0.0)
    path = plan.out / "cells" / f"{cell.name}.json"
    path.parent.mkdir()
    path.write_text(Score(digest="of another plan", seconds=1).model_dump_json())
    assert kept(plan, cell) is None
    path.write_text(Score(digest=plan.digest(cell), seconds=1).model_dump_json())
    assert carry_out(_Untouched(plan), [cell], math.inf, None) == {cell: kept(plan, cell)}


class _Untouched:
    def __init__(self, plan):
        self.plan = plan

    def carry_out(self, cell):
        raise AssertionError(f"{cell.name} is trained again")


def test_the_rate_with_the_highest_level_is_chosen_and_of_equal_ones_the_smallest(plan):
    assert best_rate([(0.004, 0.7), (0.001, 0.7), (0.016, 0.6)]) == 0.001
    tried = {
        cell: Score(digest="x", levels={"a": {"r5": cell.rate}}, seconds=1)
        for cell in plan.tuning()
    }
    assert set(chosen_rates(plan, tried).values()) == {max(plan.rates)}


def test_a_sum_of_noised_parts_is_the_sum_with_as_much_noise_as_one_site_adds():
    """What masks leave of it: whole numbers mod 2**32, without a wrap."""
    entries, noise, parties = 50_000, 1.5, 3
    grid = distributed_grid(entries, 1.0, noise, parties=parties, missing=1)
    own = [np.full(entries, value) for value in (0.25, -0.5, 0.75)]
    given = [NoisedSum({"f": noised_steps(v, grid).astype(np.uint32)}, 1) for v in own]
    found = summed(given)["f"].view(np.int32) / grid.per_unit
    assert found.mean() == pytest.approx(0.5, abs=0.05)
    # One site may be missing or curious, so all together add half as much again in variance.
    assert found.std() == pytest.approx(noise * math.sqrt(3 / 2), rel=0.02)
    without_one = summed(given[1:])["f"].view(np.int32) / grid.per_unit
    assert without_one.std() == pytest.approx(noise, rel=0.02)


def test_the_table_prints_gains_and_losses_as_they_are(plan, scores):
    rates = {(Row("separable"), 1.0): 0.004}
    text = markdown(plan, scores, rates, "the command")
    assert "$ the command" in text
    line = next(line for line in text.splitlines() if line.startswith("| separable, noise at each"))
    cells = line.split("|")[3:]
    # Gain of 0.05 - 0.1 / epsilon + 0.002 on average: below the base at 1, above it without noise.
    assert cells[0].strip().startswith("*-0.048 (")
    assert cells[-2].strip().startswith("**+0.052 (")
    assert "\N{GREEK SMALL LETTER EPSILON} = \N{INFINITY}" in text
    assert "separable altfold at \N{GREEK SMALL LETTER EPSILON} = 1 0.004" in text


def test_a_job_of_too_few_sites_is_refused(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(JOB.read_text().replace(', "intensive-care"', ""))
    with pytest.raises(ConfigError, match="three names"):
        make_plan(job, 5, tmp_path)


def test_a_job_that_is_not_there_ends_with_2(tmp_path):
    assert main(["--job", str(tmp_path / "no.toml"), "--out", str(tmp_path)]) == 2


def test_the_page_has_the_place_for_the_table_and_names_its_command():
    page = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text()
    table = page.split(f"<!-- {PAGE}: begin -->")[1].split(f"<!-- {PAGE}: end -->")[0]
    assert "python -m simulations.utility" in table
