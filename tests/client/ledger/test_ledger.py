"""The ledger: what was released is in it, whatever happens; and without it nothing is released."""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from client.audit import AuditLog
from client.audit_check import verify
from client.keeping import IN_THE_CLEAR
from client.ledger import Population, PrivacyLedger, Release
from client.ledger.database import LedgerFile
from client.ledger.tables import Table
from client.privacy_policy import Terms
from client.site_key import KeyFile
from client.vault import Vault
from shared.errors import RefusedError, StorageError
from shared.privacy.accountant import Spend, epsilon

SPEND = Spend(sampling=0.05, noise=4.0, steps=10, entries=1000)
TERMS = Terms(epsilon=1.0, run_epsilon=1.0, delta=1e-5, clip=1.0, noise=0.5)
PATIENTS = [f"PATIENT-{number}" for number in range(200)]
CHEST = Population("chest", "d" * 64, PATIENTS)
RELEASE = Release(
    population="chest", study="lungs", run="run-1", round=1, attempt=1, mode="local",
    data_sha256="d" * 64, spend=SPEND, clip=1.0,
)  # fmt: skip


def reopened(folder, vault=IN_THE_CLEAR):
    return PrivacyLedger(folder / "privacy", AuditLog(folder / "audit.jsonl"), vault)


@pytest.fixture
def ledger(tmp_path):
    opened = reopened(tmp_path)
    opened.enrol(CHEST)
    return opened


def spend(ledger, rounds=1, terms=TERMS, **more):
    for number in range(rounds):
        receipt = ledger.spend(replace(RELEASE, round=number + 1, **more), terms)
    return receipt


def about(found, exact):
    """Check that a bound is rounded up, and by little."""
    assert exact <= found <= 1.02 * exact
    return found


def refused(reason, call):
    with pytest.raises(RefusedError) as caught:
        call()
    assert caught.value.reason == reason
    return str(caught.value)


def test_everything_about_a_population_is_composed(ledger):
    """Rounds, runs, studies, data sets and mechanisms."""
    receipts = [
        spend(ledger, rounds=2),
        spend(ledger, run="run-2"),
        spend(ledger, study="hearts", run="run-3", data_sha256="e" * 64),
        spend(ledger, run="run-4", spend=SPEND.model_copy(update={"noise": 6.0, "sampling": 0.1})),
    ]
    assert [receipt.seq for receipt in receipts] == [2, 3, 4, 5]
    spent = [entry.release.spend for entry in ledger.entries("chest")]
    assert epsilon(spent, 1e-5) <= receipts[-1].epsilon <= 1.02 * epsilon(spent, 1e-5)
    assert about(receipts[1].run_epsilon, epsilon([SPEND], 1e-5)) < receipts[1].epsilon
    found = [receipt.epsilon for receipt in receipts]
    assert found == sorted(found)


def test_the_steps_really_taken_are_counted(ledger):
    spend(ledger, spend=SPEND.model_copy(update={"steps": 7}))
    spend(ledger, spend=SPEND.model_copy(update={"steps": 3}))
    twenty = SPEND.model_copy(update={"steps": 20})
    assert about(spend(ledger).epsilon, epsilon([twenty], 1e-5))


def test_a_release_that_would_pass_the_budget_is_refused_and_not_counted(ledger):
    limit = epsilon([SPEND.model_copy(update={"steps": 30})], 1e-5)
    terms = replace(TERMS, epsilon=limit * 1.001, run_epsilon=limit * 1.001)
    assert spend(ledger, 3, terms).epsilon <= terms.epsilon
    message = refused("privacy-budget", lambda: spend(ledger, terms=terms))
    assert "population chest would be" in message
    refused("privacy-budget", lambda: ledger.check(RELEASE, terms))
    refused("privacy-budget", lambda: spend(ledger, terms=terms, run="run-2", study="other"))
    assert len(ledger.entries()) == 3
    assert spend(ledger, terms=TERMS).seq == 4


def test_a_run_has_a_budget_of_its_own(ledger):
    terms = replace(TERMS, run_epsilon=epsilon([SPEND], 1e-5) * 1.001)
    spend(ledger, terms=terms)
    assert "of the run" in refused("privacy-budget", lambda: spend(ledger, terms=terms))
    assert spend(ledger, terms=terms, run="run-2").seq == 2


def test_less_noise_or_longer_clipping_than_the_site_allows_is_refused(ledger):
    little = SPEND.model_copy(update={"noise": 0.4})
    refused("privacy-budget", lambda: spend(ledger, spend=little))
    refused("privacy-budget", lambda: spend(ledger, clip=1.1))
    assert ledger.entries() == []


def test_a_check_writes_nothing(ledger):
    receipt = ledger.check(RELEASE, TERMS)
    assert about(receipt.epsilon, epsilon([SPEND], 1e-5))
    assert ledger.entries() == []


def test_another_process_sees_what_was_spent(ledger, tmp_path):
    other = reopened(tmp_path)
    spend(ledger, 2)
    assert spend(other).seq == 3
    assert spend(ledger).seq == 4
    assert reopened(tmp_path).entries() == ledger.entries()
    assert verify(tmp_path / "audit.jsonl").lines == 4


def test_patients_stay_in_their_population_when_the_data_change(ledger):
    ledger.enrol(replace(CHEST, patients=[*PATIENTS[:10], "NEW"]))
    message = refused("privacy-population", lambda: ledger.enrol(Population("x", "", ["NEW"])))
    assert "counted as chest already" in message
    assert "NEW" not in message
    refused("privacy-population", lambda: ledger.enrol(Population("x", "", PATIENTS[150:160])))


def test_a_ledger_of_another_data_set_is_refused(ledger):
    message = refused(
        "privacy-population", lambda: ledger.enrol(Population("chest", "", ["OTHER"]))
    )
    assert "another data set" in message
    ledger.enrol(Population("brain", "", ["OTHER"]))
    assert about(spend(ledger, population="brain").epsilon, epsilon([SPEND], 1e-5))


def test_populations_do_not_add_up(ledger):
    spend(ledger, 3)
    ledger.enrol(Population("brain", "", ["OTHER"]))
    assert spend(ledger, population="brain").epsilon < spend(ledger).epsilon


def test_patients_who_are_not_enrolled_cannot_be_spent_on(ledger):
    refused("privacy-population", lambda: spend(ledger, population="unknown"))


def test_no_patient_id_is_in_the_ledger_or_the_audit_log(ledger, tmp_path):
    spend(ledger)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"PATIENT" not in path.read_bytes()
            assert hashlib.sha256(b"PATIENT-1").digest()[:16] not in path.read_bytes()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_sealed_ledger_says_nothing_without_the_key(tmp_path):
    vault = Vault.create(tmp_path, KeyFile.make(tmp_path / "site.key"))
    ledger = reopened(tmp_path, vault)
    ledger.enrol(CHEST)
    spend(ledger)
    raw = (tmp_path / "privacy" / "ledger").read_bytes()
    assert not any(word in raw for word in (b"SQLite", b"chest", b"lungs", b"consilia ledger"))
    assert len(reopened(tmp_path, vault).entries()) == 1
    refused("privacy-ledger", lambda: reopened(tmp_path))


def test_a_missing_ledger_is_refused_where_there_was_one(ledger, tmp_path):
    spend(ledger)
    (tmp_path / "privacy" / "ledger").unlink()
    assert "is missing" in refused("privacy-ledger", lambda: spend(ledger))
    refused("privacy-ledger", lambda: reopened(tmp_path))
    (tmp_path / "privacy" / "anchor.json").unlink()
    assert "is missing" in refused("privacy-ledger", lambda: reopened(tmp_path))


def test_an_older_copy_of_the_ledger_is_refused(ledger, tmp_path):
    spend(ledger)
    path, anchor = tmp_path / "privacy" / "ledger", tmp_path / "privacy" / "anchor.json"
    old, old_anchor = path.read_bytes(), anchor.read_bytes()
    spend(ledger, 2)
    path.write_bytes(old)
    assert "has 1 entries and had 3" in refused("privacy-ledger", lambda: spend(ledger))
    refused("privacy-ledger", lambda: reopened(tmp_path))
    anchor.write_bytes(old_anchor)
    assert "audit log" in refused("privacy-ledger", lambda: reopened(tmp_path))


def test_another_ledger_and_a_missing_or_damaged_anchor_are_refused(ledger, tmp_path):
    spend(ledger, 2)
    anchor = tmp_path / "privacy" / "anchor.json"
    good = anchor.read_bytes()
    for content in (b"", b"{}", b"[]", good.replace(b'"seq": 2', b'"seq": "2"'), good[:-1]):
        anchor.write_bytes(content)
        assert "damaged" in refused("privacy-ledger", lambda: spend(ledger))
    anchor.unlink()
    assert "is missing" in refused("privacy-ledger", lambda: spend(ledger))
    anchor.write_text(json.dumps({**json.loads(good), "ledger": "other"}))
    assert "another ledger" in refused("privacy-ledger", lambda: spend(ledger))
    anchor.write_text(json.dumps({**json.loads(good), "head": "0" * 64}))
    assert "does not go on" in refused("privacy-ledger", lambda: spend(ledger))
    anchor.write_bytes(good)
    assert spend(ledger).seq == 3


def test_any_damage_is_refused(ledger, tmp_path):
    spend(ledger)
    path = tmp_path / "privacy" / "ledger"
    good = path.read_bytes()
    for place in range(0, len(good), len(good) // 50):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        refused("privacy-ledger", lambda: spend(ledger))
    for content in (b"", good[:-1], good[: len(good) // 2], b"plain"):
        path.write_bytes(content)
        refused("privacy-ledger", lambda: spend(ledger))


def edited(path, statement):
    """Change the tables as somebody would who knows how the file is made."""
    with sqlite3.connect(":memory:") as memory:
        memory.deserialize(path.read_bytes()[50:])
        memory.executescript(statement)
        memory.commit()
        tables = memory.serialize()
    path.write_bytes(b"consilia ledger 1\n" + hashlib.sha256(tables).digest() + tables)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE spends SET steps = 1 WHERE seq = 1",
        "UPDATE spends SET noise = 100 WHERE seq = 2",
        "UPDATE populations SET name = 'other'",
        "DELETE FROM spends WHERE seq = 1",
        "DELETE FROM spends WHERE seq = 3",
        "DELETE FROM spends",
        "UPDATE spends SET steps = -5 WHERE seq = 1",
        "DELETE FROM ledger",
        "DROP TABLE spends",
        "UPDATE alembic_version SET version_num = '9999'",
    ],
)
def test_edited_tables_are_refused(ledger, tmp_path, statement):
    spend(ledger, 3)
    edited(tmp_path / "privacy" / "ledger", statement)
    refused("privacy-ledger", lambda: spend(ledger))


def test_a_full_disk_releases_nothing_and_counts_nothing(ledger, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    spend(ledger)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            spend(ledger)
    assert len(reopened(tmp_path).entries()) == 1
    assert spend(ledger).seq == 2


def test_tables_are_those_of_the_migrations(tmp_path):
    file = LedgerFile(tmp_path / "none", IN_THE_CLEAR)
    with file.session() as (session, _):
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, Table.metadata) == []


def test_a_copy_of_the_whole_folder_goes_on(ledger, tmp_path):
    """A site that moves to another machine takes its ledger along."""
    spend(ledger)
    other = tmp_path / "moved"
    shutil.copytree(tmp_path / "privacy", other / "privacy")
    shutil.copy(tmp_path / "audit.jsonl", other)
    assert spend(reopened(other)).seq == 2


def test_an_entry_that_its_anchor_does_not_know_yet_is_checked_by_its_own_digest(ledger, tmp_path):
    spend(ledger)
    anchor = tmp_path / "privacy" / "anchor.json"
    old = anchor.read_bytes()
    spend(ledger)
    anchor.write_bytes(old)  # killed between the ledger and its anchor
    assert len(ledger.entries()) == 2
    edited(tmp_path / "privacy" / "ledger", "UPDATE spends SET steps = 1 WHERE seq = 2")
    assert "changed after" in refused("privacy-ledger", lambda: spend(ledger))


def test_a_ledger_from_before_noise_was_shared_goes_on_and_says_the_same(ledger, tmp_path):
    """Its table lacks the column; what it wrote keeps its digest, so nothing looks edited."""
    spend(ledger)
    (before,) = ledger.entries()
    edited(
        tmp_path / "privacy" / "ledger",
        "ALTER TABLE spends DROP COLUMN shares; UPDATE alembic_version SET version_num = '0001'",
    )
    again = reopened(tmp_path)
    (after,) = again.entries()
    assert after == before
    assert after.sha256 == before.sha256
    assert after.release.shares == 1
    assert spend(again, mode="distributed", shares=3).seq == 2
    assert [entry.release.shares for entry in reopened(tmp_path).entries()] == [1, 3]


def test_how_many_share_the_noise_cannot_be_edited(ledger, tmp_path):
    spend(ledger, mode="distributed", shares=3)
    edited(tmp_path / "privacy" / "ledger", "UPDATE spends SET shares = 2")
    refused("privacy-ledger", lambda: spend(ledger))
