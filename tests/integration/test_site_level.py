"""A federation whose coordinator adds noise for whole sites: real sites, rounds and pages."""

import io
import json
import shutil
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from client.patient_privacy import LEDGER
from client.policy import simulation_policy
from client.privacy_policy import PrivacyPolicy
from client.together import answer_together
from server.aggregation import AGGREGATORS
from server.checkpoint import RunStore
from server.history import RunHistory
from shared.config import JobConfig
from shared.errors import ConfigError, QuorumError
from shared.messages import decode_reply, decode_request
from shared.privacy.accountant import Spend, epsilon, site_level_price
from shared.privacy.statement import NOT_COVERED_OF_SITES, Statement
from simulations import simulate as simulation
from simulations.deployed import deployed_results
from simulations.histories import history_url
from simulations.machine import encoder_for
from simulations.report import write_report
from simulations.simulate import simulate
from tests.integration.conftest import write_site

KINDS = {"a-pairs": "paired", "b-apart": "unpaired", "c-image": "image", "d-pairs": "paired"}
ROUNDS, DELTA, NOISE, CLIP = 3, 1e-3, 3.0, 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory, site_of):
    folder = tmp_path_factory.mktemp("site-level")
    for number, (name, kind) in enumerate(KINDS.items()):
        write_site(folder / name, site_of(name, kind, counts=(32, 12, 12), seed=number))
    return folder


@pytest.fixture(scope="module")
def make_job(folder, small_job):
    def make(secure=False, rounds=ROUNDS, **tables):
        tree = small_job.model_dump(mode="json", include={"name", "lora", "model"})
        tree |= {
            "rounds": rounds,
            "train": {"steps": 2, "batch_size": 8},
            "data": {"folder": str(folder)},
            "aggregate": {"rule": "altfold", "fold_every": 2},
            "personalize": {"method": "duet", "rank": 4, "steps": 2},
            "privacy": {
                "differential_privacy": True,
                "mode": "site-level",
                "unit": "site",
                "noise_multiplier": NOISE,
                "delta": DELTA,
                "clip_norm": CLIP,
                "secure_aggregation": secure,
            },
            "evaluate": {"minimum_count": 1, "bootstrap": 100, "baselines": []},
            "simulation": {"device": "cpu", "workers": 1, "samples_at_once": 1},
        }
        for table, values in tables.items():
            tree[table] = {**tree.get(table, {}), **values}
        return JobConfig.model_validate(tree)

    return make


def heard(run, job, console=None):
    """Carry a job out; return its results and every reply of a site."""
    bodies = []

    def listen(asked):
        answers = answer_together(asked)
        bodies.extend(zip((body for _, body in asked), answers, strict=True))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "answer_together", listen)
        results = simulate(run, job, console or Console(quiet=True))
    return results, bodies


@pytest.fixture(scope="module", params=[False, True], ids=["one-by-one", "secure"])
def whole(request, make_job, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    printed = io.StringIO()
    job = make_job(secure=request.param)
    results, bodies = heard(run, job, Console(file=printed, width=400))
    return job, run, results, bodies, printed.getvalue()


def records_of(run, results):
    with RunHistory(history_url(run)) as history:
        return history.committed_rounds(results.run)


def test_the_statement_says_what_was_done_for_whom_and_at_what_price(whole):
    job, run, results, _, _ = whole
    assert results.status == "finished"
    assert set(results.privacy) == set(KINDS)
    (statement,) = set(results.privacy.values())
    claim = statement.claim
    assert (claim.mode, claim.unit, claim.adjacency) == ("site-level", "site", "zero-out")
    assert (claim.steps, claim.noise, claim.clip, claim.delta) == (ROUNDS, (NOISE,), CLIP, DELTA)
    assert claim.units == 3  # the fewest that train a tower
    layout = encoder_for(job, "cpu").layout
    rule = AGGREGATORS["altfold"](job.aggregate)
    factors = [rule.trains(number) for number in range(1, ROUNDS + 1)]
    spends = [
        Spend(sampling=1, noise=NOISE, steps=1, entries=layout.entries(each)) for each in factors
    ]
    assert claim.epsilon == epsilon(spends, DELTA)
    most = max(layout.entries(each) for each in factors)
    price = site_level_price(3, NOISE, ROUNDS, DELTA, most)
    assert f"noise of {price.deviation:.3g} of the clipping norm" in claim.mechanism
    assert f"{price.noise_to_signal:.3g} times as long" in claim.mechanism
    sums = "sees the sum of the sites' changes before it does"
    assert (sums in claim.trust) == job.privacy.secure_aggregation
    assert "must be trusted" in claim.trust
    assert claim.not_covered == NOT_COVERED_OF_SITES
    kept = json.loads((run / "manifest.json").read_text())["privacy"]
    assert {site: Statement.read(tree) for site, tree in kept.items()} == results.privacy


def test_page_and_screen_say_sites_and_not_patients(whole):
    _, run, _, _, printed = whole
    page = write_report(run).read_text()
    assert "Differential privacy for each site as a whole, not against the coordinator" in page
    assert "Patients were promised nothing" in page
    assert "No differential privacy for patients: no claim" in page
    assert "differential privacy for its patients" not in page
    assert "no noise was added" not in page
    assert "3 rounds, the site as a whole" in page
    assert "must be trusted" in page
    assert "and no loss" in page
    assert "Noise for whole sites: 3 times the clipping norm on their sum" in printed
    assert "Warning: the noise outweighs what all sites together can say" in printed
    assert "with 3 sites to a tower noise of 1 of the clipping norm on each number" in printed


def test_nothing_of_a_round_is_told_beside_the_change(whole):
    _, run, results, bodies, _ = whole
    trained = 0
    for body, answer in bodies:
        request, reply = decode_request(body)[0], decode_reply(answer)[0]
        if request.kind != "train":
            continue
        trained += 1
        assert reply.status == "ok", reply.detail
        summary = reply.summary
        if summary is None:
            assert request.secure is not None
            continue
        assert summary.loss is summary.validation_loss is None
        assert not summary.gradient_norms
        assert not summary.discrepancy
        assert not summary.clipped
    assert trained == ROUNDS * len(KINDS)
    for record in records_of(run, results):
        assert record.relative_error is None
        assert not {"loss", "validation_loss"} & record.means.keys()
        assert record.means.get("clipped", 0.0) == 0.0
        for each in record.contributions:
            assert (each.loss, each.validation_loss, each.clipped) == (None, None, False)
            assert not each.gradient_norms
    assert results.aggregation.relative_error is None
    assert results.aggregation.clipped == 0
    assert not any(cost.loss or cost.validation_loss for cost in results.round_costs)
    # No patient was counted: there is no ledger anywhere.
    assert not list(run.rglob(LEDGER))


def test_a_run_taken_up_again_keeps_its_rounds_and_their_noise(whole):
    job, run, results, _, _ = whole
    before = [record.adapter_sha256 for record in records_of(run, results)]
    again = simulate(run, job, Console(quiet=True))
    assert [record.adapter_sha256 for record in records_of(run, results)] == before
    assert again.adapter_sha256 == results.adapter_sha256
    assert again.privacy == results.privacy


def test_a_coordinator_says_the_same_of_a_deployed_run_from_what_it_kept(whole, tmp_path):
    _, run, results, _, _ = whole
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "evaluations" / "c-image.json").unlink()  # the promise is about what was sent before
    with RunStore.open(copy, lock=False) as store, RunHistory(history_url(run)) as history:
        summary, rounds = history.run(results.run), history.committed_rounds(results.run)
        found = deployed_results(store, summary, rounds)
    assert found.privacy == results.privacy
    assert found.sites["c-image"].metrics == {}


def test_the_noise_is_in_what_the_sites_are_sent(whole):
    """After a round every number moved, by about z C over the sites; training moves them less."""
    job, _, _, bodies, _ = whole
    received = {}
    for body, _ in bodies:
        request, tensors = decode_request(body)
        if request.kind == "train" and request.round == 2 and tensors:
            received |= {name: np.asarray(tensors[name]) for name in tensors}
    layout = encoder_for(job, "cpu").layout
    assert received
    # Round 1 trains B from zero, and round 2 begins with B A in another gauge: its length stays.
    lengths = np.sqrt(sum(float(np.square(values).sum()) for values in received.values()))
    assert lengths > NOISE * CLIP / 4 * np.sqrt(layout.entries(("B",))) / 2


def test_noise_follows_from_epsilon(make_job, tmp_path):
    job = make_job(
        rounds=2,
        privacy={"noise_multiplier": None, "epsilon": 5.0},
        personalize={"method": "none"},
    )
    claim = next(iter(simulate(tmp_path / "run", job, Console(quiet=True)).privacy.values())).claim
    assert 4.9 < claim.epsilon <= 5.0


def test_too_few_sites_for_the_delta_are_refused_before_anything_is_written(make_job, tmp_path):
    with pytest.raises(ConfigError, match=r"with 4 sites: delta 0\.3 is not below one"):
        simulate(tmp_path / "run", make_job(privacy={"delta": 0.3}), Console(quiet=True))
    with pytest.raises(ConfigError, match="no finite epsilon holds"):
        simulate(
            tmp_path / "run", make_job(privacy={"noise_multiplier": 0.01}), Console(quiet=True)
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "policy",
    [
        {"require_differential_privacy": True},
        {"privacy": PrivacyPolicy(population="p", epsilon=8.0, delta=1e-5)},
    ],
    ids=["required", "budget"],
)
def test_a_site_that_promises_its_patients_something_takes_no_such_job(
    make_job, tmp_path, monkeypatch, policy
):
    changed = simulation_policy().model_copy(update=policy)
    monkeypatch.setattr(simulation, "simulation_policy", lambda: changed)
    carry_out = partial(simulate, tmp_path / "run", make_job(), Console(quiet=True))
    with pytest.raises(QuorumError, match="policy-differential-privacy"):
        carry_out()
