"""The gate before an export, and what an audit changes in a run's statements."""

import json

import pytest

from shared.errors import RefusedError, RunDirectoryError
from shared.privacy.statement import Claim, Statement, claimed
from simulations.audit.gate import OVERRIDES, pass_gate
from simulations.audit.results import (
    AUDIT,
    AuditReport,
    BoundFound,
    InversionFound,
    MembershipFound,
    read_audit,
    write_audit,
)
from simulations.audit.statements import audited
from simulations.report.privacy import attacks
from simulations.report.privacy import audited as lines_of

ADAPTER = "a" * 64


def membership(auc=0.51, protection="as the job says", wide=0.03):
    low, high = max(0, auc - wide), min(1, auc + wide)
    return MembershipFound(
        protection=protection, score="calibrated", auc=auc, low=low, high=high,
        hits=0.01, hits_low=0.0, hits_high=0.05, members=100, others=100,
    )  # fmt: skip


def bound(value=1.0, what="the run", claimed=8.0):
    return BoundFound(
        what=what, steps=30, rate=0.2, noise=1.0, claimed=claimed, bound=value, most=6.0,
        delta=1e-5, confidence=0.9995, canaries=1000, guesses=300, right=200,
    )  # fmt: skip


def inversion(cosine=0.0, way="noised"):
    return InversionFound(
        way=way, tower="text", cosine=cosine, low=cosine - 0.05, high=cosine + 0.05,
        largest=cosine + 0.2, tokens=0.1, guessed=0.2, records=16,
    )  # fmt: skip


def report(**changes):
    fields = {
        "name": "job", "created": "2026-01-01T00:00:00+00:00", "job_sha256": "b" * 64,
        "adapter_sha256": ADAPTER, "base_sha256": "c" * 64, "site": "a", "records": "own",
        "epsilon": 8.0, "delta": 1e-5, "membership": (membership(),),
        "bounds": (bound(), bound(what="one step", claimed=4.0)), "inversion": (inversion(),),
    }  # fmt: skip
    return AuditReport(**{**fields, **changes})


BAD = {
    "bound": {"bounds": (bound(8.5),)},
    "one step": {"bounds": (bound(), bound(4.5, "one step", 4.0))},
    "membership": {"membership": (membership(0.7),)},
    "inversion": {"inversion": (inversion(0.5),)},
}


@pytest.mark.parametrize(("auc", "status"), [(0.78, "passed"), (0.99, "failed")])
def test_what_so_few_canaries_show_by_chance_fails_nobody(auc, status):
    """12 on each side: 0.78 (0.57 to 0.97) is what one in a hundred sound adapters shows."""
    assert report(membership=(membership(auc, wide=0.21),)).status == status


def gate(run, override=None, claims=True, adapter=ADAPTER):
    return pass_gate(run, adapter, claims=claims, to=run / "new", override=override)


def test_a_sound_audit_passes_and_the_export_says_so(tmp_path):
    assert report().status == "passed"
    write_audit(tmp_path, report())
    found, record = gate(tmp_path)
    assert (found.remark, record) == ("", {"audit": "passed"})


@pytest.mark.parametrize("bad", BAD)
def test_a_failed_audit_is_refused(tmp_path, bad):
    write_audit(tmp_path, report(**BAD[bad]))
    with pytest.raises(RefusedError, match="not exported") as caught:
        gate(tmp_path)
    assert caught.value.reason == "audit-failed"
    for empty in ("", "  "):
        with pytest.raises(RefusedError):
            gate(tmp_path, empty)
    assert not (tmp_path / OVERRIDES).exists()


@pytest.mark.parametrize("bad", BAD)
def test_an_override_is_recorded_in_export_and_run(tmp_path, bad):
    write_audit(tmp_path, report(**BAD[bad]))
    for reason in ("phantoms only", "again"):
        _, record = gate(tmp_path, reason)
        assert record["audit"] == "failed"
        assert record["exported_because"] == reason
        assert record["failures"]
    kept = json.loads((tmp_path / OVERRIDES).read_text())
    assert [each["exported_because"] for each in kept] == ["phantoms only", "again"]
    assert kept[0]["adapter_sha256"] == ADAPTER
    assert kept[0]["to"] == str(tmp_path / "new")


def test_a_claim_without_an_audit_is_said_and_not_refused(tmp_path):
    found, record = gate(tmp_path)
    assert "never audited" in found.remark
    assert record == {"audit": "none"}
    assert gate(tmp_path, claims=False)[0].remark == ""


def test_where_nothing_is_claimed_nothing_fails(tmp_path):
    plain = report(epsilon=None, delta=None, bounds=(), membership=(membership(0.9),))
    assert plain.status == "nothing claimed"
    assert not plain.failures
    write_audit(tmp_path, plain)
    assert gate(tmp_path, claims=False)[1] == {"audit": "nothing claimed"}


def test_an_attack_on_the_unprotected_job_fails_nothing():
    found = (membership(), membership(0.95, "without privacy"))
    inverted = (inversion(), inversion(1.0, "alone"))
    assert report(membership=found, inversion=inverted).status == "passed"


def test_an_audit_of_an_earlier_adapter_is_said(tmp_path):
    write_audit(tmp_path, report())
    assert "went on" in gate(tmp_path, adapter="d" * 64)[0].remark


def test_more_rounds_do_not_mend_a_failed_audit(tmp_path):
    write_audit(tmp_path, report(**BAD["bound"]))
    with pytest.raises(RefusedError):
        gate(tmp_path, adapter="d" * 64)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": 2}'])
def test_an_audit_that_cannot_be_read_is_not_taken_for_none(tmp_path, content):
    (tmp_path / AUDIT).write_bytes(content)
    with pytest.raises(RunDirectoryError, match="run the audit anew"):
        gate(tmp_path)


def test_damaged_overrides_are_not_overwritten(tmp_path):
    write_audit(tmp_path, report(**BAD["bound"]))
    (tmp_path / OVERRIDES).write_bytes(b"{")
    with pytest.raises(RunDirectoryError, match="put back a copy"):
        gate(tmp_path, "why")


def test_an_audit_is_read_as_it_was_written(tmp_path):
    write_audit(tmp_path, report())
    assert read_audit(tmp_path) == report()


def statement():
    return claimed(Claim(
        mode="local", mechanism="m", unit="patient", epsilon=7.9, delta=1e-5, clip=1.0,
        noise=(1.0,), sampling="s", steps=30, composed="c", trust="t", accountant="a",
    ))  # fmt: skip


def test_the_statement_gets_the_bound():
    claim = audited(statement(), report()).claim
    assert (claim.audit_bound, claim.audit_confidence) == (1.0, 0.9995)
    assert "at least 1 (confidence 0.9995)" in audited(statement(), report()).text()


@pytest.mark.parametrize("bad", BAD)
def test_a_failed_audit_takes_the_claim_away(bad):
    found = audited(statement(), report(**BAD[bad]))
    assert found.claim is None or bad in {"membership", "inversion"}


def test_a_statement_without_a_claim_stays_as_it_is():
    plain = Statement(reasons=("why",))
    assert audited(plain, report()) is plain


def test_the_report_shows_what_was_found_and_what_was_not_run():
    named = dict(lines_of(report(**BAD["bound"])))
    assert named["Outcome"][0] == "failed"
    assert "200 phantom patients" in named["Planted pairs"][0]
    found = attacks(report(**BAD["bound"]))
    assert len(found) == 4  # membership, two bounds, inversion
    assert any("refuted" in what for _, _, what in found)
    assert dict(lines_of(None))["Membership test"] == ["not run"]
    assert attacks(None) == []
