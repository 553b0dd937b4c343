"""A federation with differential privacy: it trains, is counted and is held to its limits."""

import contextlib
import csv
import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

import client.patient_privacy
from client.agent import SiteAgent
from client.ledger import Population, PrivacyLedger, account
from client.patient_privacy import PatientPrivacy, spent
from client.policy import simulation_policy
from client.privacy_policy import PrivacyPolicy
from client.together import answer_together
from shared.config import JobConfig
from shared.errors import ConfigError, QuorumError, RefusedError
from shared.messages import decode_reply, decode_request, encode
from shared.privacy.accountant import Spend, epsilon
from shared.privacy.statement import NO_CLAIM, Statement
from simulations import simulate as simulation
from simulations.machine import encoder_for
from simulations.report import write_report
from simulations.simulate import simulate
from simulations.sites import site_settings
from tests.integration.conftest import write_patients, write_site

KINDS = {"a-pairs": "paired", "b-apart": "unpaired", "c-image": "image"}
STEPS, ROUNDS, RATE = 4, 2, 0.3


@pytest.fixture(scope="module")
def folders(tmp_path_factory, site_of):
    """Three sites with two records to a patient, and a public set that is none of theirs."""
    folder = tmp_path_factory.mktemp("private")
    write_patients(folder, site_of, KINDS)
    return folder


@pytest.fixture(scope="module")
def make_job(folders, small_job, clip_folder):
    def make(**tables):
        tree = small_job.model_dump(mode="json", include={"name", "rounds", "lora", "train"})
        tree["train"] |= {"steps": STEPS, "label_similarity": 0.2}
        tree |= {
            "data": {"folder": str(folders / "sites")},
            "model": {"base": str(clip_folder)},
            "aggregate": {"rule": "altfold", "fold_every": 2},
            "personalize": {"method": "duet", "rank": 4, "steps": 2},
            "proxy": {"folder": str(folders / "public")},
            "privacy": {"differential_privacy": True, "epsilon": 8.0, "sampling_rate": RATE},
            "evaluate": {"minimum_count": 1, "bootstrap": 100, "baselines": []},
            "simulation": {"device": "cpu", "workers": 1},
        }
        for table, values in tables.items():
            tree[table] = {**tree.get(table, {}), **values}
        return JobConfig.model_validate(tree)

    return make


def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="module")
def whole(make_job, tmp_path_factory):
    """A run, its results, and everything that was asked and answered."""
    run = tmp_path_factory.mktemp("whole") / "run"
    bodies = []

    def listen(asked):
        answers = answer_together(asked)
        bodies.extend(zip((body for _, body in asked), answers, strict=True))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "answer_together", listen)
        results = simulate(run, make_job(), quiet())
    return run, results, bodies


def test_it_trains_in_every_round_and_at_every_site(whole):
    _, results, bodies = whole
    assert results.status == "finished"
    assert results.rounds == ROUNDS
    changed = 0
    for body, answer in bodies:
        request, _ = decode_request(body)
        reply, tensors = decode_reply(answer)
        assert reply.status == "ok", reply.detail
        if request.kind == "train":
            changed += 1
            assert any(np.asarray(values).any() for values in tensors.values())
    assert changed == ROUNDS * len(KINDS)
    assert "shared" in results.mean.metrics


def test_no_loss_and_no_norm_leaves_with_a_private_update(whole):
    _, _, bodies = whole
    for body, answer in bodies:
        request, _ = decode_request(body)
        summary = decode_reply(answer)[0].summary
        if request.kind == "train":
            assert summary is not None
            assert summary.loss is summary.validation_loss is None
            assert not summary.gradient_norms
            assert not summary.discrepancy


def test_the_ledger_has_every_step_and_the_run_keeps_to_its_epsilon(whole):
    run, results, _ = whole
    for name, kind in KINDS.items():
        entries = spent(run / "sites" / name, results.run)
        spends = [entry.release.spend for entry in entries]
        assert [(e.release.round, e.release.study) for e in entries] == [
            (number, "small") for number in (1, 2)
        ]
        assert sum(spend.steps for spend in spends) == STEPS * ROUNDS
        assert {spend.sampling for spend in spends} == {RATE}
        (noise,) = {spend.noise for spend in spends}
        total = epsilon(spends, 1e-5)
        assert 7.5 < total <= 8.0, kind
        # What the accountant says of the steps by themselves.
        again = epsilon([Spend(sampling=RATE, noise=noise, steps=8, entries=4000)], 1e-5)
        assert total == pytest.approx(again, rel=1e-3)


def test_results_and_run_folder_carry_the_statement_of_every_site(whole):
    run, results, _ = whole
    assert set(results.privacy) == set(KINDS)
    for statement in results.privacy.values():
        claim = statement.claim
        assert claim is not None
        assert (claim.unit, claim.steps, claim.clip) == ("patient", STEPS * ROUNDS, 1.0)
        assert claim.epsilon <= 8.0
        assert any("measures" in words for words in claim.not_covered)
    kept = json.loads((run / "manifest.json").read_text())["privacy"]
    assert kept["a-pairs"]["text"].startswith("(")
    assert {site: Statement.read(tree) for site, tree in kept.items()} == results.privacy
    for name, statement in results.privacy.items():
        assert account.statement(spent(run / "sites" / name, results.run), 1e-5) == statement


def test_the_report_says_so(whole):
    page = write_report(whole[0]).read_text()
    assert "no noise was added" not in page
    assert "No differential privacy: no claim" not in page
    assert "-differential privacy" in page
    assert "DP-SGD at the site" in page


def test_groups_of_patients_get_twice_the_noise_and_the_statement_says_so(make_job, tmp_path):
    job = make_job(
        privacy={"objective": "grouped", "group_size": 4},
        data={"sites": ["a-pairs"]},
        personalize={"method": "none"},
    )
    results = simulate(tmp_path / "run", job, quiet())
    claim = results.privacy["a-pairs"].claim
    assert (claim.sensitivity, claim.unit, claim.steps) == (2.0, "patient", STEPS * ROUNDS)
    assert claim.epsilon <= 8.0
    text = results.privacy["a-pairs"].text()
    assert "per-group gradients" in text
    assert "L2 norm 1 per group of patients" in text
    assert "(2 times the clipping norm)" in text
    releases = [entry.release for entry in spent(tmp_path / "run" / "sites" / "a-pairs", "run")]
    assert {release.sensitivity for release in releases} == {2.0}


def test_the_manifest_of_a_run_without_privacy_says_that_nothing_is_claimed(small, tmp_path):
    job = small(privacy={"differential_privacy": False, "epsilon": None, "sampling_rate": 0.2})
    plain = job.model_copy(update={"proxy": job.proxy.model_copy(update={"folder": None})})
    results = simulate(tmp_path / "run", plain, quiet())
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["privacy"]
    assert {tree["text"] for tree in kept.values()} == {NO_CLAIM}
    assert not results.privacy


def test_a_simulation_must_be_told_where_the_public_set_is(small, tmp_path):
    named = {"folder": None, "sha256": "a" * 64}
    with pytest.raises(ConfigError, match=r"proxy.sha256 .* --set proxy.folder=DIR"):
        simulate(tmp_path / "run", small(proxy=named), quiet())
    assert not (tmp_path / "run").exists()


def test_it_is_written_down_before_it_leaves(small, tmp_path, monkeypatch):
    def broken(self, promise, steps):
        raise RefusedError("privacy-ledger", "the disk is full")

    monkeypatch.setattr(PatientPrivacy, "spend", broken)
    bodies = []

    def listen(asked):
        answers = answer_together(asked)
        bodies.extend(answers)
        return answers

    monkeypatch.setattr(simulation, "answer_together", listen)
    with pytest.raises(QuorumError):
        simulate(tmp_path / "run", small(), quiet())
    replies = [decode_reply(answer) for answer in bodies]
    trained = [(reply, tensors) for reply, tensors in replies if reply.kind == "train"]
    assert trained
    for reply, tensors in trained:
        assert (reply.status, reply.reason) == ("refused", "privacy-ledger")
        assert not tensors


@pytest.fixture(scope="module")
def small(make_job):
    """One site and nothing after the rounds, for what is asked before and in them."""

    def make(**tables):
        alone = {"data": {"sites": ["a-pairs"]}, "personalize": {"method": "none"}}
        for table, values in alone.items():
            tables[table] = {**values, **tables.get(table, {})}
        return make_job(**tables)

    return make


@pytest.fixture
def asked_of(small, tmp_path, monkeypatch):
    """Run a job at sites with another policy; return the replies to trainings, and the run."""

    def ask(job, **policy):
        bodies = []

        def listen(asked):
            answers = answer_together(asked)
            bodies.extend(answers)
            return answers

        changed = simulation_policy().model_copy(update=policy)
        monkeypatch.setattr(simulation, "simulation_policy", lambda: changed)
        monkeypatch.setattr(simulation, "answer_together", listen)
        with contextlib.suppress(QuorumError):
            simulate(tmp_path / "run", job, quiet())
        replies = [decode_reply(answer)[0] for answer in bodies]
        return replies, tmp_path / "run"

    return ask


def reasons(replies):
    return {reply.reason for reply in replies if reply.status == "refused"}


def test_a_site_that_requires_privacy_takes_no_job_without_it(small, asked_of):
    job = small(privacy={"differential_privacy": False, "epsilon": None, "sampling_rate": 0.2})
    plain = job.model_copy(update={"proxy": job.proxy.model_copy(update={"folder": None})})
    replies, _ = asked_of(plain, require_differential_privacy=True)
    assert reasons(replies) == {"policy-differential-privacy"}


def test_a_site_that_requires_privacy_takes_a_private_job(small, asked_of):
    replies, _ = asked_of(small(), require_differential_privacy=True)
    assert not reasons(replies)


def test_the_sites_budget_ends_the_training_before_it_is_passed(small, asked_of):
    budget = PrivacyPolicy(population="p", epsilon=1.0, delta=1e-5)
    job = small(privacy={"epsilon": None, "noise_multiplier": 1.5})
    replies, run = asked_of(job, privacy=budget)
    assert reasons(replies) == {"privacy-budget"}
    spends = [entry.release.spend for entry in spent(run / "sites" / "a-pairs", "run")]
    assert epsilon(spends, 1e-5) <= 1.0


POLICY = """
[privacy]
population = "chest-2026"
epsilon = 7.9
delta = 1e-6
"""


def test_a_sites_ledger_is_charged_over_restarts_and_runs_until_its_policy_refuses(
    whole, make_job, tmp_path
):
    run, _, bodies = whole
    budget = PrivacyPolicy.model_validate(tomllib.loads(POLICY)["privacy"])
    policy = simulation_policy().model_copy(update={"privacy": budget})
    (of_run,) = [site for site in site_settings(run, make_job()) if site.name == "a-pairs"]
    settings = replace(of_run, state=tmp_path / "state")

    def asked_after_restart(body):
        agent = SiteAgent(settings, policy, lambda job: encoder_for(job, "cpu"))
        return decode_reply(agent.handle(body))

    requests = [body for body, _ in bodies if _trains(body, "a-pairs")]
    for body in [*requests, requests[-1]]:  # the last one again, which costs nothing
        reply, tensors = asked_after_restart(body)
        assert reply.status == "ok", reply.detail
        assert tensors
    entries = spent(settings.state, "run")
    assert [entry.release.round for entry in entries] == [1, 2]
    assert {entry.release.population for entry in entries} == {"chest-2026"}
    assert 7.4 < epsilon([entry.release.spend for entry in entries], 1e-6) <= 7.9
    request, tensors = decode_request(requests[0])
    other = encode(request.model_copy(update={"run": "another"}), tensors)
    reply, tensors = asked_after_restart(other)
    assert (reply.status, reply.reason) == ("refused", "privacy-budget")
    assert not tensors
    assert not spent(settings.state, "another")


def _trains(body, site):
    request, _ = decode_request(body)
    return request.kind == "train" and request.site == site


def test_a_site_asks_for_more_privacy_than_the_job(small, asked_of):
    budget = PrivacyPolicy(population="p", epsilon=2.0, delta=1e-6, largest_clip=0.25)
    replies, run = asked_of(small(), privacy=budget)
    assert not reasons(replies)
    entries = spent(run / "sites" / "a-pairs", "run")
    assert {entry.release.clip for entry in entries} == {0.25}
    assert epsilon([entry.release.spend for entry in entries], 1e-6) <= 2.0


@pytest.mark.parametrize(
    ("delta", "policy"), [(0.2, {}), (1e-5, {"minimum_patients": 100})], ids=["delta", "few"]
)
def test_promises_that_would_not_hold_are_refused_by_the_site(small, asked_of, delta, policy):
    job = small(privacy={"delta": delta})
    replies, run = asked_of(job, **policy)
    assert reasons(replies) <= {"privacy-plan", "policy-patients"}
    assert reasons(replies)
    assert not spent(run / "sites" / "a-pairs", "run")


def test_records_without_patients_are_refused(small, asked_of, folders, tmp_path, site_of):
    sites = tmp_path / "sites"
    write_site(sites / "a-pairs", site_of("a-pairs"))
    table = sites / "a-pairs" / "metadata.csv"
    rows = list(csv.DictReader(table.open()))
    for row in rows[:3]:
        row["patient_id"] = ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    replies, run = asked_of(small(data={"folder": str(sites), "sites": []}))
    assert reasons(replies) == {"privacy-plan"}
    assert not spent(run / "sites" / "a-pairs", "run")


def test_a_repeated_question_costs_nothing(small, tmp_path, monkeypatch):
    def twice(asked):
        first = answer_together(asked)
        if decode_request(asked[0][1])[0].kind == "train":
            again = answer_together(asked)
            for one, other in zip(first, again, strict=True):
                before, after = decode_reply(one)[1], decode_reply(other)[1]
                assert before
                assert all(np.array_equal(before[name], after[name]) for name in before)
        return first

    monkeypatch.setattr(simulation, "answer_together", twice)
    results = simulate(tmp_path / "run", small(), quiet())
    assert len(spent(tmp_path / "run" / "sites" / "a-pairs", results.run)) == ROUNDS


def test_a_ledger_of_another_data_set_releases_nothing(small, asked_of, monkeypatch):
    """As when a site's folder is put together from two sites' backups."""

    def of_others(folder, audit, *how):
        ledger = PrivacyLedger(folder, audit, *how)
        ledger.enrol(Population("p", "d" * 64, ["a patient of somewhere else"]))
        return ledger

    monkeypatch.setattr(client.patient_privacy, "PrivacyLedger", of_others)
    budget = PrivacyPolicy(population="p", epsilon=8.0, delta=1e-5)
    replies, _ = asked_of(small(), privacy=budget)
    assert reasons(replies) == {"privacy-population"}
