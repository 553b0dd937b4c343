"""Sites come once, get new keys and go; no other site's line or kit changes."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from client.provisioning.joining import begin
from server.provisioning.admission import admit, kit_for, revoke, rotate
from server.provisioning.folder import ConsortiumFolder
from server.provisioning.founding import found
from shared.errors import IdentityError, StorageError
from shared.security.consortium import read_kit

NOW = datetime.now(UTC)
WEEK = timedelta(days=7)


@pytest.fixture
def folder(tmp_path):
    return found(tmp_path / "coordinator", "demo", ["gateway.example.org"], 443, NOW)


@pytest.fixture
def make(tmp_path):
    """Make the public part of a site, in a folder of its own."""
    count = iter(range(1000))
    return lambda name: begin(tmp_path / f"site-{next(count)}", name, NOW).part


def test_a_site_is_admitted_and_gets_a_kit(folder, make):
    part = make("site-a")
    admission = admit(folder, part, NOW)
    kit = read_kit(admission.kit, NOW)
    assert kit.signer == folder.key.public
    assert (kit.content.site, kit.content.enrolment) == ("site-a", part.enrolment)
    assert kit.content.authority.encode() == folder.authority
    assert (kit.content.gateway, kit.content.port) == ("gateway.example.org", 443)
    roster = folder.roster()
    assert (roster.edition, [m.name for m in roster.members]) == (2, ["site-a"])
    assert folder.signing_keys("site-a") == (part.signing_key,)
    assert folder.signing_keys("site-b") == ()
    assert folder.paths.node("site-a").read_text() == part.node_key + "\n"


def test_a_public_part_admits_once(folder, make):
    part = make("site-a")
    admit(folder, part, NOW)
    with pytest.raises(IdentityError, match=r"site-a: this file was used already, on 20.*lost kit"):
        admit(folder, part, NOW)
    revoke(folder, "site-a", NOW)
    with pytest.raises(IdentityError, match="used already"):
        admit(folder, part, NOW)
    assert folder.roster().edition == 3


def test_two_sites_with_one_identity_are_refused(folder, make):
    part, other = make("site-a"), make("site-b")
    admit(folder, part, NOW)
    for stolen in (
        other.model_copy(update={"signing_key": part.signing_key}),
        other.model_copy(update={"node_key": part.node_key}),
        part.model_copy(update={"name": "site-b", "enrolment": other.enrolment}),
    ):
        with pytest.raises(IdentityError, match="site-b: its keys are those of site site-a"):
            admit(folder, stolen, NOW)
    admit(folder, other, NOW)


def test_a_name_is_taken_by_a_member_and_by_a_revoked_one(folder, make):
    admit(folder, make("site-a"), NOW)
    with pytest.raises(IdentityError, match=r"is in the roster already; .*server rotate site-a"):
        admit(folder, make("site-a"), NOW)
    revoke(folder, "site-a", NOW)
    with pytest.raises(IdentityError, match="was revoked, and its name is never used again"):
        admit(folder, make("site-a"), NOW)


def test_new_keys_count_beside_the_old_ones_for_a_while_and_touch_nobody_else(folder, make):
    old, other, new = make("site-a"), make("site-b"), make("site-a")
    admit(folder, old, NOW)
    kit_b = admit(folder, other, NOW).kit.read_bytes()
    line_b = folder.roster().member("site-b")
    rotate(folder, "site-a", new, WEEK, NOW)
    member = folder.roster().member("site-a")
    both = (old.signing_key, new.signing_key)
    assert member.signing_keys(NOW + WEEK - timedelta(seconds=1)) == both
    assert member.signing_keys(NOW + WEEK) == (new.signing_key,)
    assert folder.roster().member("site-b") == line_b
    assert folder.paths.kit("site-b").read_bytes() == kit_b
    assert folder.paths.node("site-a").read_text() == new.node_key + "\n"
    with pytest.raises(IdentityError, match="used already"):
        rotate(folder, "site-a", new, WEEK, NOW)
    with pytest.raises(IdentityError, match="used already"):
        rotate(folder, "site-a", old, WEEK, NOW)


def test_an_overlap_never_prolongs_older_keys(folder, make):
    parts = [make("site-a") for _ in range(3)]
    admit(folder, parts[0], NOW)
    rotate(folder, "site-a", parts[1], timedelta(days=1), NOW)
    rotate(folder, "site-a", parts[2], WEEK, NOW)
    member = folder.roster().member("site-a")
    assert member.signing_keys(NOW + timedelta(days=2)) == tuple(p.signing_key for p in parts[1:])


def test_only_a_members_own_part_rotates_it(folder, make):
    admit(folder, make("site-a"), NOW)
    admit(folder, make("site-b"), NOW)
    with pytest.raises(IdentityError, match="the file is of site site-c"):
        rotate(folder, "site-a", make("site-c"), WEEK, NOW)
    with pytest.raises(IdentityError, match=r"site-x: is not in the roster; .*site-a, site-b"):
        rotate(folder, "site-x", make("site-x"), WEEK, NOW)
    assert folder.roster().edition == 3


def test_nothing_counts_that_a_revoked_site_signs(folder, make):
    part, other = make("site-a"), make("site-b")
    admit(folder, part, NOW)
    admit(folder, other, NOW)
    kit_b = folder.paths.kit("site-b").read_bytes()
    revoke(folder, "site-a", NOW)
    assert folder.signing_keys("site-a") == ()
    assert folder.signing_keys("site-b") == (other.signing_key,)
    assert not folder.paths.node("site-a").exists()
    assert folder.paths.kit("site-b").read_bytes() == kit_b
    for again in (
        lambda: revoke(folder, "site-a", NOW),
        lambda: kit_for(folder, "site-a", NOW),
        lambda: rotate(folder, "site-a", make("site-a"), WEEK, NOW),
    ):
        with pytest.raises(IdentityError, match="was revoked"):
            again()


def test_a_lost_kit_comes_back_with_the_roster_of_today(folder, make):
    admit(folder, make("site-a"), NOW)
    admit(folder, make("site-b"), NOW)
    folder.paths.kit("site-a").unlink()
    kit = read_kit(kit_for(folder, "site-a", NOW).kit, NOW).content
    assert [member.name for member in kit.roster.members] == ["site-a", "site-b"]


def test_a_roster_that_cannot_be_written_is_as_it_was(folder, make, monkeypatch):
    def full(*_, **__):
        raise StorageError("no space left on the disk")

    part, before = make("site-a"), folder.paths.roster.read_bytes()
    monkeypatch.setattr("server.provisioning.folder.write_atomic", full)
    with pytest.raises(StorageError):
        admit(folder, part, NOW)
    assert folder.paths.roster.read_bytes() == before
    monkeypatch.undo()
    admit(folder, part, NOW)


def test_commands_at_the_same_time_lose_no_site(folder, make):
    parts = [make(f"site-{number}") for number in range(6)]
    opened = [ConsortiumFolder.open(folder.paths.folder.parent) for _ in parts]
    threads = [
        threading.Thread(target=admit, args=(each, part, NOW))
        for each, part in zip(opened, parts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    roster = folder.roster()
    assert roster.edition == 7
    assert {member.name for member in roster.members} == {part.name for part in parts}
