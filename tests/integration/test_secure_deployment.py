"""Secure aggregation between real processes, one site of which is away in every round.

Slow: three minutes.
"""

import json
from functools import partial

import pytest
from rich.console import Console

from client.data.sources import find_sites
from shared.config import load_job
from shared.messages import decode_request
from shared.privacy.accountant import Spend, epsilon
from shared.privacy.statement import Statement
from shared.wire import body_of
from simulations import simulate as simulation
from simulations.grid import LocalGrid
from tests.integration.lab import Lab, running, working_in

pytestmark = pytest.mark.slow

ROUNDS = 2
HIDDEN = """
[privacy]
secure_aggregation = true
differential_privacy = true
mode = "site-level"
unit = "site"
noise_multiplier = 2.0
clip_norm = 0.01
delta = 1e-3
"""


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder, ["paired"] * 4)
    lab = Lab(folder, clip_folder, [site.name for site in find_sites(federation.data)])
    lab.found(federation.data)
    for site in lab.sites:  # the kits that came first do not name the sites that came later
        kit = lab.json("server", "kit", site, "--home", lab.home, "--json")["kit"]
        lab.json("client", "join", kit, "--site", lab.site(site), "--json")
    job = lab.write_job("job", ROUNDS, 60)
    job.write_text(job.read_text() + "[privacy]\nsecure_aggregation = true\n")
    with running(lab):
        yield lab


class Without(LocalGrid):
    """Loses the training of the sites that were not in the sum of a round."""

    def __init__(self, agents, together=None, *, summed):
        super().__init__(agents, together, fail=partial(self._lose, summed))

    def _lose(self, summed, message):
        request, _ = decode_request(body_of(message))
        site = self.node_name(message.metadata.dst_node_id)
        if request.kind == "train" and site not in summed[request.round]:
            raise OSError


def test_a_site_killed_in_every_round_leaves_the_exact_sum_over_the_others(
    lab, tmp_path, monkeypatch
):
    run = lab.submit(lab.folder / "job.toml")
    for number in range(1, ROUNDS + 1):
        site = lab.sites[number]
        lab.wait_for(run, working_in(number, site))
        lab.kill(f"agent-{site}")
        lab.start_agent(site)
    end = lab.finish_well(run)
    summed = {
        record.round: {each.site for each in record.contributions if each.state == "in"}
        for record in lab.rounds(run)
    }
    print("in the sums:", {number: sorted(sites) for number, sites in summed.items()})
    assert sorted(summed) == [1, 2]
    assert all(len(sites) >= 3 for sites in summed.values())
    assert any(len(sites) == 3 for sites in summed.values())
    # A run without masks, whose sites are lost in the same rounds.
    job = load_job(lab.folder / "job.toml", {"data.folder": str(lab.folder / "data")})
    plain = job.privacy.model_copy(update={"secure_aggregation": False})
    monkeypatch.setattr(simulation, "LocalGrid", partial(Without, summed=summed))
    found = simulation.simulate(
        tmp_path / "run", job.model_copy(update={"privacy": plain}), Console(quiet=True)
    )
    assert end["adapter_sha256"] == found.adapter_sha256
    shown = json.loads(lab.server("status", run, "--json"))["runs"][0]
    assert shown["secure_aggregation"] is True
    said = [
        json.loads(line)["what"]
        for site in lab.sites
        for line in (lab.site(site) / "state" / "audit.jsonl").read_text().splitlines()
    ]
    assert said.count("masked update") >= 3 * ROUNDS
    assert "update" not in said


def test_noise_for_whole_sites_is_added_to_the_sums_and_told_by_the_coordinator(lab):
    job = lab.write_job("hidden", ROUNDS, 5)
    job.write_text(job.read_text() + HIDDEN)
    run = lab.submit(job)
    lab.finish_well(run)
    manifest = json.loads((lab.home / "runs" / run / "manifest.json").read_text())
    for site in lab.sites:
        claim = Statement.read(manifest["privacy"][site]).claim
        assert (claim.mode, claim.unit, claim.units) == ("site-level", "site", len(lab.sites))
        assert (claim.noise, claim.clip, claim.steps) == ((2.0,), 0.01, ROUNDS)
        spent = [Spend(sampling=1, noise=2.0, steps=ROUNDS, entries=1)]
        assert claim.epsilon == pytest.approx(epsilon(spent, 1e-3), rel=1e-3)
        assert "no site's own, and must be trusted" in claim.trust
