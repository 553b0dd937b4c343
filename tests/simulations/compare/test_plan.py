"""All else equal: what the runs of a comparison share, and what is refused before any of them."""

import pytest

from shared.errors import ConfigError
from simulations.compare.methods import parse_methods
from simulations.compare.plan import make_plan, parse_rates

METHODS = "fedavg,ffa,altfold+duet"


@pytest.fixture
def plan_of(tmp_path):
    def make(text="", methods=METHODS, rates=None, seeds=2, **overrides):
        path = tmp_path / "job.toml"
        path.write_text(f'name = "p"\nseed = 5\nrounds = 6\n{text}')
        return make_plan(path, overrides, parse_methods(methods), rates, seeds, tmp_path / "out")

    return make


def compared(plan):
    return plan.compared(dict.fromkeys(plan.rows, plan.rates[0]))


def test_runs_differ_in_nothing_but_method_rate_and_seed(plan_of):
    plan = plan_of("[train]\nsteps = 3\nlearning_rate = 0.002\n")
    tasks = [task for task in [*plan.tuning(), *compared(plan)] if not task.reference]
    same = set()
    for task in tasks:
        job = task.job
        train = job.train.model_copy(update={"learning_rate": 0.5})
        same.add(
            (job.rounds, train, job.lora, job.data, job.model, job.evaluate, job.simulation)
            .__repr__()
        )  # fmt: skip
        # A rule that trains one factor a round takes the same optimiser steps.
        assert (job.rounds, job.train.steps) == (6, 3)
    assert len(same) == 1
    assert {t.job.aggregate.rule for t in tasks} == {"fedavg", "ffa", "altfold"}
    assert {t.job.personalize.method for t in tasks} == {"none", "duet"}


def test_rates_are_the_jobs_and_its_half_and_double_for_every_row(plan_of):
    plan = plan_of("[train]\nlearning_rate = 0.002\n")
    assert plan.rates == (0.001, 0.002, 0.004)
    assert [t.rate for t in plan.tuning()] == [0.001, 0.002, 0.004] * 5  # and two references
    assert all(t.job.train.learning_rate == t.rate for t in plan.tuning())
    assert plan_of(rates=[0.3, 0.1, 0.3]).rates == (0.1, 0.3)


def test_the_tuning_seed_is_none_of_those_compared(plan_of):
    plan = plan_of(seeds=3)
    assert plan.seeds == (5, 6, 7)
    assert {t.seed for t in plan.tuning()} == {plan.tuning_seed}
    assert plan.tuning_seed not in plan.seeds
    assert [t.tuning for t in compared(plan)] == [False] * 15
    assert plan_of(rates=[0.1]).tuning() == []  # one rate: nothing to choose


def test_baselines_are_trained_once_per_seed_and_not_with_any_method(plan_of):
    plan = plan_of()
    for task in compared(plan):
        assert task.job.evaluate.baselines == ([task.method] if task.reference else [])
        assert task.job.evaluate.gallery_queries == 0
    assert sum(task.method == "local" for task in compared(plan)) == 2
    assert len({task.folder for task in compared(plan)}) == len(compared(plan))


def test_options_that_the_file_leaves_open_are_each_rules_own(plan_of):
    jobs = {t.method: t.job for t in compared(plan_of('[aggregate]\nrule = "fedavg"\n'))}
    assert jobs["fedavg"].aggregate.fold_every == 0
    assert jobs["altfold+duet"].aggregate.fold_every == 4


def test_robust_rules_are_told_how_many_sites_are_hostile(plan_of):
    attack = '[attack]\nsites = {university = "flip", klinikum = "scale"}\n'
    methods = "fedavg,fedavg+trimmed-mean,fedavg+median"
    jobs = {t.method: t.job for t in compared(plan_of(attack, methods))}
    told = {name: job.aggregate.hostile for name, job in jobs.items()}
    assert (told["fedavg"], told["fedavg+trimmed-mean"], told["fedavg+median"]) == (0, 2, 0)


def test_a_method_that_cannot_run_with_the_job_is_refused_by_the_jobs_own_sentence(plan_of):
    with pytest.raises(ConfigError, match=r"^fedavg: cannot run with .*job.toml: .*fold_every"):
        plan_of("[aggregate]\nfold_every = 2\n")


@pytest.mark.parametrize("seeds", [0, -1, 5000])
def test_numbers_of_seeds_that_make_no_sense(plan_of, seeds):
    with pytest.raises(ConfigError, match=f"--seeds {seeds}: expected 1 to"):
        plan_of(seeds=seeds)


@pytest.mark.parametrize("text", ["", "fast", "0.1,,0.2", "-1", "0", "2", "nan"])
def test_rates_that_are_none(text):
    with pytest.raises(ConfigError, match="no learning rate"):
        parse_rates(text)


def test_the_digest_is_that_of_job_and_records_so_a_comparison_can_grow(plan_of):
    digest = plan_of().digest()
    assert plan_of(methods="ffa", seeds=4, rates=[0.1]).digest() == digest
    assert plan_of("[train]\nsteps = 9\n").digest() != digest
    assert plan_of(**{"data.folder": "elsewhere"}).digest() != digest
