"""Secure aggregation and patient-level privacy between real processes, sealed, ten rounds.

In every round one site's agent is killed while it trains. Slow: some minutes.
"""

import json
import re
from dataclasses import replace

import pytest

from client.data.describe import describe_site
from client.data.sources import find_sites
from shared.privacy.statement import Statement
from tests.integration.conftest import write_site
from tests.integration.lab import Lab, running, working_in

pytestmark = pytest.mark.slow

ROUNDS, STEPS, RATE = 10, 30, 0.2
SITES = ("a-paired", "b-paired", "c-paired", "d-paired")
JOB = """
[privacy]
secure_aggregation = true
differential_privacy = true
noise_multiplier = 4.0
sampling_rate = {rate}
[proxy]
sha256 = "{sha256}"
"""
# What a killed agent trained is spent, and what it trains instead is spent again: the budget is for
# twice the rounds.
POLICY = """
require_secure_aggregation = true
require_differential_privacy = true
[privacy]
population = "{site}"
epsilon = 16.0
delta = 1e-5
noise_shares = 2
"""
TOGETHER = """mode = "distributed"
noise_shares = 2
"""
SEALING = """
[sealing]
key_file = "../{site}.key"
pictures = "memory"
"""


@pytest.fixture(scope="module")
def lab(site_of, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    for number, name in enumerate(SITES):
        data = site_of(name, "paired", counts=(48, 16, 16), seed=number)
        splits = {n: replace(s, patients=s.patients // 2) for n, s in data.splits.items()}
        write_site(folder / "data" / name, replace(data, splits=splits))
    write_site(folder / "public" / "set", site_of("public", counts=(24, 8, 8), seed=9))
    lab = Lab(folder, clip_folder, list(SITES))
    lab.found(folder / "data")
    for site in lab.sites:
        settings, policy = lab.site(site) / "site.toml", lab.site(site) / "policy.toml"
        public = f'proxy = "{folder / "public" / "set" / "metadata.csv"}"\n'
        settings.write_text(public + settings.read_text() + SEALING.format(site=site))
        allowed = policy.read_text().replace('["altfold"]', '["altfold", "ffa"]')
        policy.write_text(allowed + POLICY.format(site=site))
        # The kits that came first do not name the sites that came later.
        kit = lab.json("server", "kit", site, "--home", lab.home, "--json")["kit"]
        lab.json("client", "join", kit, "--site", lab.site(site), "--json")
        lab.call("client", "seal", "--site", lab.site(site))
    (public,) = find_sites(folder / "public")
    job = lab.write_job("job", ROUNDS, STEPS)
    asked = JOB.format(rate=RATE, sha256=describe_site(public).pairs_sha256)
    job.write_text(job.read_text() + asked)
    together = lab.write_job("together", ROUNDS, 1)
    text = together.read_text().replace("fold_every = 2", 'rule = "ffa"')
    noise = "noise_multiplier = 4.0\n"
    together.write_text(text + asked.replace(noise, noise + TOGETHER))
    with running(lab):
        yield lab


def test_ten_rounds_with_both_on_and_a_site_killed_in_every_one(lab):
    run = lab.submit(lab.folder / "job.toml")
    killed = {}
    for number in range(1, ROUNDS + 1):
        site = str(lab.wait_for(run, working_in(number), 600)["site"])
        lab.kill(f"agent-{site}")
        lab.start_agent(site)
        killed[number] = site
    end = lab.finish_well(run, 900)
    assert end["rounds"] == ROUNDS
    summed = {
        record.round: {each.site for each in record.contributions if each.state == "in"}
        for record in lab.rounds(run)
    }
    for number, sites in sorted(summed.items()):
        print(f"round {number}: killed {killed[number]}; in the sum: {', '.join(sorted(sites))}")
    assert sorted(summed) == list(range(1, ROUNDS + 1))
    assert all(len(sites) >= 3 for sites in summed.values())
    assert any(killed[number] not in sites for number, sites in summed.items())

    # The coordinator was told of sums and masks, and of no site's own change.
    for site in lab.sites:
        lines = (lab.site(site) / "state" / "audit.jsonl").read_text().splitlines()
        said = [json.loads(line)["what"] for line in lines]
        assert "update" not in said
        assert "masked update" in said

    # Every site says what it has spent: at least for the rounds that its change is in.
    manifest = json.loads((lab.home / "runs" / run / "manifest.json").read_text())
    for site in lab.sites:
        claim = Statement.read(manifest["privacy"][site]).claim
        rounds = sum(site in sites for sites in summed.values())
        assert claim.unit == "patient"
        assert claim.noise == (4.0,)
        assert STEPS * rounds <= claim.steps <= STEPS * (ROUNDS + len(killed))
        assert 0 < claim.epsilon <= 16.0
        print(f"{site}: {rounds} rounds in the sum, {claim.steps} steps, eps {claim.epsilon:.2f}")


def test_ten_rounds_of_one_step_whose_noise_the_sites_add_together(lab):
    """In every round one site's agent is killed, whatever it is doing."""
    run = lab.submit(lab.folder / "together.toml")
    for number in range(1, ROUNDS + 1):
        lab.wait_for(run, at("round-started", number), 600)
        site = lab.sites[number % len(lab.sites)]
        lab.kill(f"agent-{site}")
        lab.start_agent(site)
    end = lab.finish_well(run, 900)
    assert end["rounds"] == ROUNDS
    for record in lab.rounds(run):
        summed = [each.site for each in record.contributions if each.state == "in"]
        print(f"round {record.round}: in the sum: {', '.join(sorted(summed))}")
        assert len(summed) >= 3  # two whose noise is enough, and one that may be curious
    manifest = json.loads((lab.home / "runs" / run / "manifest.json").read_text())
    for site in lab.sites:
        claim = Statement.read(manifest["privacy"][site]).claim
        assert (claim.mode, claim.noise) == ("distributed", (4.0,))
        assert "2 honest sites in every sum" in claim.trust
        assert 0 < claim.steps <= 2 * ROUNDS
        print(f"{site}: {claim.steps} steps, eps {claim.epsilon:.2f}; {claim.trust}")


def at(kind, number):
    return lambda event: (event["kind"], event.get("round")) == (kind, number)


def test_nothing_of_a_site_lies_in_the_clear(lab):
    assert not any(
        re.search(rb"patient|\.png|finding", path.read_bytes())
        for site in lab.sites
        for folder in ("personal", "privacy", "received")
        for path in (lab.site(site) / "state").glob(f"{folder}/**/*")
        if path.is_file() and path.name != "anchor.json"
    )
