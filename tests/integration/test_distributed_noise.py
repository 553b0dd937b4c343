"""Rounds that are one sum of clipped gradients, to which all sites add noise together."""

import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console
from safetensors.numpy import load_file

from client.patient_privacy import spent
from client.policy import simulation_policy
from client.privacy_policy import PrivacyPolicy
from client.release import EncodedUpdate
from client.secure_rounds import SecureStages
from shared.config import JobConfig
from shared.distributed_noise import grid_at, noise_of, scale_of
from shared.errors import ConfigError, QuorumError
from shared.privacy.accountant import epsilon
from shared.privacy.mechanism import IN_SINGLE_PRECISION
from shared.privacy.statement import Statement
from simulations import simulate as simulation
from simulations.machine import encoder_for
from simulations.report import write_report
from simulations.simulate import simulate
from tests.integration.conftest import write_patients

KINDS = {"a-pairs": "paired", "b-apart": "unpaired", "c-pairs": "paired", "d-image": "image",
         "e-pairs": "paired"}  # fmt: skip
ROUNDS, RATE, SHARES = 4, 0.3, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory, site_of):
    """Five sites with two records to a patient, and a public set that is none of theirs."""
    folder = tmp_path_factory.mktemp("together")
    write_patients(folder, site_of, KINDS)
    return folder


@pytest.fixture(scope="module")
def tree(folders, small_job, clip_folder):
    kept = small_job.model_dump(mode="json", include={"name", "lora"})
    return kept | {
        "rounds": ROUNDS,
        "train": {"label_similarity": 0.2, "shift_pixels": 0},
        "data": {"folder": str(folders / "sites")},
        "model": {"base": str(clip_folder)},
        "personalize": {"method": "none"},
        "proxy": {"folder": str(folders / "public")},
        "privacy": {
            "differential_privacy": True, "secure_aggregation": True, "mode": "distributed",
            "epsilon": 8.0, "sampling_rate": RATE, "noise_shares": SHARES,
        },
        "evaluate": {"minimum_count": 1, "bootstrap": 100, "baselines": []},
        "simulation": {"device": "cpu", "workers": 1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def make_job(tree):
    def make(**tables):
        changed = dict(tree)
        for table, values in tables.items():
            changed[table] = (
                {**tree.get(table, {}), **values} if isinstance(values, dict) else values
            )
        return JobConfig.model_validate(changed)

    return make


def carry_out(run, job):
    return simulate(run, job, Console(quiet=True))


@pytest.fixture(scope="module")
def whole(make_job, tmp_path_factory):
    """A run, its results, and what every site put into the sums: its request and its update."""
    run, given = tmp_path_factory.mktemp("whole") / "run", []
    mask = SecureStages.mask

    def listen(self, request, update, layout):
        given.append((request, update))
        return mask(self, request, update, layout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecureStages, "mask", listen)
        return run, carry_out(run, make_job()), given


def test_every_round_is_one_step_of_one_factor_with_the_optimiser_at_the_server(make_job, whole):
    job = make_job()
    aggregate = job.aggregate
    assert (job.train.steps, aggregate.rule, aggregate.server_optimizer) == (1, "ffa", "adam")
    _, results, given = whole
    assert results.status == "finished"
    assert [request.round for request, _ in given] == [
        number for number in range(1, ROUNDS + 1) for _ in KINDS
    ]
    for request, update in given:
        assert isinstance(update, EncodedUpdate)
        assert all(name.endswith("lora_B.weight") for name in update.steps)
        assert set(update.weights.values()) == {1}
        said = update.summary.model_dump(exclude_defaults=True)
        assert said == {"expected": update.summary.expected}
        assert request.scale == update.scale


def test_the_server_applies_the_mean_over_patients(whole, make_job):
    """By hand: Adam's first step of the sum, over the patients that are expected of all sites."""
    run, _, given = whole
    first = [update for request, update in given if request.round == 1]
    expected = sum(update.summary.expected for update in first)
    # 24 patients a site, to two digits, at a rate of 0.3.
    assert [update.summary.expected for update in first] == [7] * len(KINDS)
    content = load_file(run / "checkpoints" / "round-0001" / "shared.safetensors")
    after = {name.removeprefix("factors/"): values for name, values in content.items()}
    for name in first[0].steps:
        total = np.sum([u.steps[name] for u in first if name in u.steps], axis=0, dtype=np.uint32)
        mean = total.view(np.int32) / (first[0].scale * expected)
        m, v = 0.1 * mean, 0.99 * 1e-6 + 0.01 * mean**2
        assert after[name] == pytest.approx(0.01 * m / (np.sqrt(v) + 1e-3), rel=1e-3, abs=1e-7)


def test_each_site_adds_its_share_and_the_sum_has_as_much_as_is_accounted(whole, make_job):
    _, _, given = whole
    job = make_job()
    encoder = encoder_for(job, "cpu")
    layout = encoder.layout
    noise = noise_of(job, layout)
    scale = scale_of(job, layout, ("B",), len(KINDS))
    grid = grid_at(scale, job, layout, ("B",), len(KINDS))
    steps = [
        u.steps[name].view(np.int32).astype(float) for _, u in given for name in sorted(u.steps)
    ]
    everything = np.concatenate([each.reshape(-1) for each in steps])
    # Of 24 patients 7 take part, with a norm of 1 at most: little beside the noise in any number.
    assert np.median(np.abs(everything)) / 0.6745 == pytest.approx(2.0**grid.bits, rel=0.03)
    one = noise * (IN_SINGLE_PRECISION * scale + 2 * math.sqrt(layout.entries(("B",))))
    assert math.sqrt(SHARES) * 2.0**grid.bits >= one
    assert math.sqrt(SHARES) * 2.0**grid.bits == pytest.approx(one, rel=5e-3)


def test_the_ledger_counts_one_step_a_round_with_the_noise_of_the_sum(whole, make_job):
    run, results, _ = whole
    for name in KINDS:
        releases = [entry.release for entry in spent(run / "sites" / name, results.run)]
        assert [(r.mode, r.shares, r.spend.steps) for r in releases] == [
            ("distributed", SHARES, 1)
        ] * ROUNDS
        total = epsilon([r.spend for r in releases], 1e-5)
        assert 7.5 < total <= 8.0


def test_the_statement_says_whom_it_leans_on_and_what_is_left_without(whole):
    run, results, _ = whole
    assert set(results.privacy) == set(KINDS)
    claim = results.privacy["a-pairs"].claim
    assert claim.mode == "distributed"
    assert claim.epsilon <= 8.0
    assert "2 honest sites in every sum" in claim.trust
    releases = [e.release for e in spent(run / "sites" / "a-pairs", results.run)]
    alone = [
        r.spend.model_copy(update={"noise": r.spend.noise / math.sqrt(SHARES)}) for r in releases
    ]
    left = epsilon(alone, 1e-5)
    assert left > claim.epsilon
    said = float(claim.trust.rsplit("epsilon ", 1)[1])
    assert left <= said <= left * 1.01
    manifest = json.loads((run / "manifest.json").read_text())["privacy"]["a-pairs"]
    assert Statement.read(manifest).claim == claim
    page = write_report(run)
    assert "2 honest sites in every sum" in page.read_text()


def allowed(job, **changes):
    budget = {
        "population": "simulated", "epsilon": 8.0, "delta": 1e-5, "least_noise": 0.3,
        "noise_shares": SHARES,
    }  # fmt: skip
    return simulation_policy().model_copy(
        update={"privacy": PrivacyPolicy.model_validate(budget | changes)}
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_shares": 1}, "privacy-plan"),  # does not rely on others
        ({"least_noise": 50.0}, "privacy-plan"),  # wants more noise than others add
        ({"epsilon": 2.0}, "privacy-plan"),
        ({"delta": 1e-9}, "privacy-plan"),
        # Of five sites four answer, and one of them may have pictures only: three with the text
        # tower, two of whom are to add the noise.
        ({"curious_sites": 2}, "secure-noise"),
    ],
)
def test_a_site_that_is_promised_less_than_its_policy_says_gives_nothing(
    changes, reason, make_job, tmp_path, monkeypatch
):
    monkeypatch.setattr(simulation, "with_simulated_budget", lambda _, job: allowed(job, **changes))
    with pytest.raises(QuorumError) as failed:
        carry_out(tmp_path / "run", make_job())
    assert reason in str(failed.value)
    for name in KINDS:
        assert not spent(tmp_path / "run" / "sites" / name, "any")


def test_more_curious_sites_are_borne_where_more_sites_must_answer(make_job, tmp_path, monkeypatch):
    def policy(_, job):
        return allowed(job, curious_sites=2)

    monkeypatch.setattr(simulation, "with_simulated_budget", policy)
    results = carry_out(tmp_path / "run", make_job(aggregate={"quorum": 5}, rounds=1))
    assert results.status == "finished"


def test_too_few_sites_for_the_noise_are_not_asked_for_it(make_job, tmp_path):
    with pytest.raises(QuorumError, match="noise together is enough in every tower"):
        carry_out(tmp_path / "run", make_job(privacy={"noise_shares": 4}))


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"privacy": {"secure_aggregation": False}}, "turn secure aggregation on"),
        ({"train": {"steps": 2}}, "a round is one step"),
        ({"train": {"proximal": 0.1}}, "no steps that it could hold back"),
        ({"aggregate": {"clip_norm": 3.0}}, "no change leaves that it could clip"),
        ({"privacy": {"mode": "local", "noise_shares": 3}}, "noise that sites add together"),
        ({"privacy": {"noise_multiplier": 0.0, "epsilon": None}}, "hides nobody"),
    ],
)
def test_jobs_whose_noise_would_not_be_enough_are_refused(tables, sentence, tree):
    changed = {name: {**tree.get(name, {}), **values} for name, values in tables.items()}
    with pytest.raises(ValidationError, match=sentence):
        JobConfig.model_validate({**tree, **changed})


def test_noise_that_fits_no_sum_ends_the_run_with_what_to_do(make_job, tmp_path):
    job = make_job(privacy={"epsilon": None, "noise_multiplier": 1e5})
    with pytest.raises(ConfigError, match="noise 100000"):
        carry_out(tmp_path / "run", job)


def test_the_example_of_the_page_is_a_job(tree):
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    example = page.split("### Distributed noise")[1]
    table = tomllib.loads(example.split("```toml\n")[1].split("```")[0])["privacy"]
    job = JobConfig.model_validate({**tree, "privacy": table})
    assert (job.privacy.mode, job.privacy.noise_shares) == ("distributed", 5)
