"""What the manifest says of privacy: the sites' own words, or why there are none."""

from types import SimpleNamespace

from server.statements import statements
from shared.config import parse_job
from shared.privacy.statement import NO_CLAIM, Claim, Statement, claimed
from shared.results import SiteEvaluation

PRIVATE = {
    "name": "private",
    "proxy": {"phantoms": 64},
    "privacy": {"differential_privacy": True, "epsilon": 8.0},
}
SAID = claimed(
    Claim(
        mode="local",
        mechanism="m",
        unit="patient",
        epsilon=7.5,
        delta=1e-5,
        clip=1.0,
        noise=(1.2,),
        sampling="s",
        steps=8,
        composed="c",
        trust="t",
        accountant="a",
    )
)


def evaluation(privacy):
    return SiteEvaluation(metrics={}, differences={}, in_use={}, privacy=privacy)


def test_every_site_has_its_own_statement_and_a_silent_one_claims_nothing():
    outcome = SimpleNamespace(
        privacy=None, sites={"a": None, "silent": None}, evaluations={"a": evaluation(SAID)}
    )
    found = statements(parse_job(PRIVATE), outcome)
    assert Statement.read(found["a"]) == SAID
    assert found["silent"]["text"] == NO_CLAIM
    assert found["silent"]["reasons"] == ["the site did not say what its ledger has"]


def test_a_job_without_privacy_claims_nothing():
    outcome = SimpleNamespace(privacy=None, sites={"a": None}, evaluations={"a": evaluation(None)})
    found = statements(parse_job({"name": "plain"}), outcome)
    assert found["a"]["text"] == NO_CLAIM
    assert "asks for no differential privacy" in found["a"]["reasons"][0]


def test_the_coordinators_own_statement_is_every_sites():
    """Of a site that never evaluated as well: it is about what the site sent."""
    said = SAID.claim.model_copy(update={"mode": "site-level", "unit": "site"})
    outcome = SimpleNamespace(
        privacy=claimed(said), sites={"a": None, "silent": None}, evaluations={}
    )
    asked = {"mode": "site-level", "unit": "site", "epsilon": 8.0, "differential_privacy": True}
    found = statements(parse_job({"name": "sites", "privacy": asked}), outcome)
    assert {site: Statement.read(tree).claim for site, tree in found.items()} == dict.fromkeys(
        ("a", "silent"), said
    )
