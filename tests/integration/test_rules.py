"""Every rule of the job file carries a small federation through two rounds.

``fedsa`` and ``creamfl``, which have no shared model, are in ``test_fedsa`` and ``test_creamfl``.
"""

import numpy as np
import pytest

from client.together import answer_together
from server.aggregation import AGGREGATORS, COMBINERS
from server.aggregation.lowrank import decompose
from shared.adapter import factor_name
from shared.config import JobConfig
from shared.errors import InterruptedRunError, QuorumError
from simulations.grid import LocalGrid, Together

RULES = {name: {"rule": name} for name in AGGREGATORS if name not in {"fedsa", "creamfl"}} | {
    "flexlora, tail folded": {"rule": "flexlora", "tail": "fold"},
    **{name: {"rule": "altfold", "combine": name} for name in COMBINERS if name != "mean"},
    **{
        f"ffa, {name}": {"rule": "ffa", "fold_every": 0, "server_optimizer": name}
        for name in ("momentum", "adam", "yogi")
    },
    "fedavg, median, momentum": {
        "rule": "fedavg",
        "combine": "median",
        "server_optimizer": "momentum",
    },
    "ffa, median": {"rule": "ffa", "combine": "median", "fold_every": 0},
    "fedavg, geometric median": {"rule": "fedavg", "combine": "geometric-median"},
}
NEED_A_NUMBER = {"trimmed-mean": 1, "multi-krum": 1}
KINDS = ("paired",) * 5  # as many as multi-krum needs against one


def job_of(base, options):
    tree = base.model_dump(mode="json", exclude={"aggregate"})
    hostile = NEED_A_NUMBER.get(options.get("combine"))
    tree["aggregate"] = options | ({"hostile": hostile} if hostile else {})
    tree["personalize"]["method"] = "none"
    tree["train"] |= {"proximal": 0.01, "steps": 2}  # FedProx goes with every rule
    return JobConfig.model_validate(tree)


def in_one_cohort(agents):
    """A grid that trains all sites at once."""
    return LocalGrid(agents, Together(answer_together, dict.fromkeys(agents, 16), 99))


@pytest.fixture(scope="module")
def federation(make_federation, tmp_path_factory):
    """Five sites with pairs."""
    return make_federation(tmp_path_factory.mktemp("rules"), KINDS)


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_two_rounds_lower_the_loss(federation, tmp_path, options):
    job = job_of(federation.job, options)
    outcome = federation.run(tmp_path / "run", in_one_cohort, job)
    assert outcome.complete
    assert outcome.rounds == 2
    courses = [[point.loss for point in site.course] for site in outcome.sites.values()]
    assert sum(course[-1] - course[0] for course in courses) < 0
    layout = federation.encoder.layout
    moved = {}
    for layer in layout.layers:
        moved[layer.module] = 0.0
        for part in (outcome.shared.factors, outcome.shared.residual):
            names = [factor_name(layer.module, factor) for factor in ("B", "A")]
            if names[0] in part:
                sizes = decompose(*(part[n].astype(np.float64) for n in names)).sizes
                moved[layer.module] += float(sizes[0])
    assert min(moved.values()) > 1e-6, moved


@pytest.mark.parametrize("name", ["flexlora, tail folded", "flora", "ffa, adam", "ffa, momentum"])
def test_a_stopped_run_goes_on_to_the_same_bits(federation, tmp_path, name):
    job = job_of(federation.job, RULES[name])
    whole = federation.run(tmp_path / "whole", in_one_cohort, job).shared.sha256()

    def interrupt(event):
        if event.kind == "round-started" and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        federation.run(tmp_path / "run", in_one_cohort, job, interrupt)
    resumed = federation.run(tmp_path / "run", in_one_cohort, job)
    assert resumed.shared.sha256() == whole


def test_exact_rules_say_that_they_are_exact(federation, tmp_path):
    """The relative error of each round, from the sites' own changes."""
    errors = {}
    for name in ("fedavg", "flexlora", "flexlora, tail folded", "fedex", "flora"):
        job = job_of(federation.job, RULES[name]).model_copy(update={"rounds": 1})
        outcome = federation.run(tmp_path / name, in_one_cohort, job)
        errors[name] = outcome.relative_error
    job = job_of(federation.job, RULES["median"]).model_copy(update={"rounds": 1})
    median = federation.run(tmp_path / "median", in_one_cohort, job).relative_error
    assert median > 1e-2  # one factor, and yet not the mean
    assert errors["fedavg"] > errors["flexlora"] > 1e-4
    assert max(errors[n] for n in ("flexlora, tail folded", "fedex", "flora")) < 1e-5


def test_a_round_with_too_few_sites_for_its_rule_fails_and_says_why(federation, tmp_path):
    options = {"rule": "altfold", "combine": "multi-krum", "hostile": 2}
    job = job_of(federation.job, {"rule": "altfold"}).model_dump(mode="json")
    job["aggregate"] = options
    with pytest.raises(QuorumError, match=r"5 sites contributed.*needs at least 7"):
        federation.run(tmp_path / "run", job=JobConfig.model_validate(job))
