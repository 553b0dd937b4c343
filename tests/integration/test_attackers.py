"""Hostile sites against the gate and robust rules, in real federations."""

import numpy as np
import pytest
from rich.console import Console

import server.exchange
from client.together import answer_together
from server.validation import Admitted, Rejected, judge
from shared.adapter import AdapterUpdate
from shared.config import JobConfig, load_job
from shared.messages import decode_reply
from simulations.attackers import ATTACKS, with_attackers
from simulations.grid import LocalGrid, Together
from simulations.simulate import simulate

LOAD = {f"{letter}-paired": 16 for letter in "abcd"}


@pytest.fixture(scope="module")
def federation(make_federation, tmp_path_factory):
    return make_federation(tmp_path_factory.mktemp("attackers"), ["paired"] * 4)


def attacked(federation, run, hostile, **changes):
    """Carry the job out without closing phases; the sites of ``hostile`` are."""
    tree = federation.job.model_dump(mode="json")
    tree["personalize"] |= {"method": "none"}
    for key, value in changes.items():
        table, name = key.split("__")
        tree[table] |= {name: value}
    job = JobConfig.model_validate(tree)

    def answer(asked):
        return with_attackers(answer_together(asked), hostile)

    def grid_of(agents):
        return LocalGrid(agents, Together(answer, LOAD, 64))

    return federation.run(run, grid_of, job)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "tensor-dtype"),
        ("shape", "tensor-shape"),
        ("dtype", "tensor-dtype"),
        ("weights", "wrong-weights"),
        ("stale", "wrong-round"),
        ("scale", "norm-too-large"),
    ],
)
def test_the_gate_refuses_it_names_it_and_the_round_goes_on(federation, tmp_path, kind, reason):
    # A norm near the honest sites' own, so that a hundred times as much is over it.
    limits = {"aggregate__clip_norm": 0.5}
    outcome = attacked(federation, tmp_path / "run", {"b-paired": kind}, **limits)
    cells = outcome.sites["b-paired"].participation
    allowed = {reason, "out-of-range"} if kind == "scale" else {reason}
    assert {cell.state for cell in cells} == {"refused"}
    assert {cell.reason for cell in cells} <= allowed
    for honest in ("a-paired", "c-paired", "d-paired"):
        assert {cell.state for cell in outcome.sites[honest].participation} == {"in"}
    assert not outcome.complete
    for array in outcome.shared.factors.values():
        assert np.isfinite(array).all()


def test_a_refused_site_changes_nothing_whatever_it_sends(federation, tmp_path):
    one, other = (
        attacked(federation, tmp_path / kind, {"b-paired": kind}).shared.sha256()
        for kind in ("nan", "stale")
    )
    assert one == other


def test_a_flipped_change_is_well_formed_so_that_only_a_robust_rule_helps(federation, tmp_path):
    outcome = attacked(federation, tmp_path / "run", {"b-paired": "flip"})
    assert {cell.state for cell in outcome.sites["b-paired"].participation} == {"in"}


def test_every_kind_of_attack_is_tried_here():
    assert set(ATTACKS) == {"scale", "flip", "nan", "shape", "dtype", "weights", "stale"}


def test_attackers_need_the_local_engine():
    with pytest.raises(ValueError, match="attack needs simulation"):
        JobConfig(name="a", attack={"sites": {"x": "nan"}}, simulation={"engine": "flower"})


# The whole command on ten synthetic hospitals, two of them hostile.

HOSTILE = ["university", "klinikum"]
JOB = """
name = "attackers"
seed = 3
rounds = 4
[data]
phantom_sites = 10
[train]
steps = 4
learning_rate = 0.002
label_similarity = 0.1
[personalize]
method = "none"
[evaluate]
baselines = []
gallery_queries = 0
bootstrap = 100
[aggregate]
rule = "fedavg"
server_learning_rate = 2.0
"""
ROBUST = 'combine = "trimmed-mean"\nhostile = 2\n'
POINTS = 0.03


def shared_auroc(folder, combine="", attack=None):
    """Return the shared adapter's mean AUROC over the sites' tests, and why sites were left out."""
    hostile = ", ".join(f'{site} = "{attack}"' for site in HOSTILE) if attack else ""
    job = folder / "attackers.toml"
    job.write_text(f"{JOB}{combine}[attack]\nsites = {{{hostile}}}\n", encoding="utf-8")
    results = simulate(folder / "run", load_job(job), Console(quiet=True))
    return results.mean.metrics["shared"]["auroc"].value, results.reason


def without_gate(body, expected):
    """Take every reply to ``train`` for what it says it is, as a plain server would."""
    verdict = judge(body, expected)
    if not isinstance(verdict, Rejected) or verdict.needs or expected.kind != "train":
        return verdict
    reply, tensors = decode_reply(body)
    update = AdapterUpdate(reply.site, dict(reply.weights), dict(tensors), reply.scale, {})
    return Admitted(reply, update)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return shared_auroc(tmp_path_factory.mktemp("clean"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_two_of_ten_hostile_sites_cost_less_than_three_points(clean, tmp_path, attack):
    value, reason = shared_auroc(tmp_path, ROBUST, attack)
    assert value > clean - POINTS
    if attack != "flip":  # which is well-formed, and honest in size
        assert all(site in reason for site in HOSTILE)


@pytest.mark.slow
def test_plain_fedavg_without_the_gate_fails_the_same_test(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(server.exchange, "judge", without_gate)
    value, _ = shared_auroc(tmp_path, attack="scale")
    assert not value > clean - POINTS
