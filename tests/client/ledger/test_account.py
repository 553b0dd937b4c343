"""The statement of a ledger's entries."""

from client.ledger import Entry, Release
from client.ledger.account import statement
from shared.privacy.accountant import Spend, epsilon
from shared.privacy.statement import NO_CLAIM

FIRST = Spend(sampling=0.05, noise=4.0, steps=10)
SECOND = Spend(sampling=0.1, noise=6.0, steps=5)


def entry(seq, spend=FIRST, run="a", mode="local", round_number=1, **more):
    release = Release("chest", "lungs", run, round_number, 1, mode, "d" * 64, spend, 0.5, **more)
    return Entry(seq, "2026-01-01T00:00:00.000+00:00", release, "0" * 64)


def test_says_what_everything_adds_up_to():
    found = statement([entry(1), entry(2, SECOND, run="b", sensitivity=2.0)], 1e-5, patients=900)
    claim = found.claim
    assert claim.epsilon == epsilon([FIRST, SECOND], 1e-5)
    assert (claim.steps, claim.noise, claim.clip, claim.units) == (15, (4.0, 6.0), 0.5, 900)
    assert claim.sensitivity == 2.0
    assert claim.composed == "2 releases: 2 rounds of 2 runs in 1 study"
    assert "q = 0.05" in claim.sampling
    assert "q = 0.1" in claim.sampling
    assert "per-group" in claim.mechanism  # what promises least


def test_a_distributed_release_among_others_decides_the_trust():
    claim = statement([entry(1), entry(2, mode="distributed")], 1e-5).claim
    assert claim.mode == "distributed"
    assert "secure aggregation" in claim.trust


def test_nothing_released_is_no_claim():
    assert statement([], 1e-5).text().startswith(NO_CLAIM)
    empty = FIRST.model_copy(update={"steps": 0})
    assert statement([entry(1, empty)], 1e-5).claim is None


def test_what_an_audit_measured_is_in_it_and_can_refute_it():
    assert statement([entry(1)], 1e-5, audit=(0.01, 0.999)).claim.audit_bound == 0.01
    assert statement([entry(1)], 1e-5, audit=(5.0, 0.999)).claim is None
