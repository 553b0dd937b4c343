"""A site's keys stay at the site; it joins with the right kit and with no other."""

import json
import shutil
import stat
from datetime import UTC, datetime, timedelta

import pytest

from client.provisioning.folder import SiteIdentity, SiteKeys
from client.provisioning.joining import begin, join, renew
from server.provisioning.admission import admit, kit_for, revoke, rotate
from server.provisioning.founding import found
from shared.errors import ConfigError, IdentityError
from shared.security.canonical import canonical
from shared.security.consortium import read_site_part

NOW = datetime.now(UTC)
WEEK = timedelta(days=7)


@pytest.fixture
def folder(tmp_path):
    return found(tmp_path / "coordinator", "demo", ["gateway.example.org"], 443, NOW)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "site"


@pytest.fixture
def keys(home):
    return begin(home, "site-a", NOW)


@pytest.fixture
def kit(folder, keys):
    return admit(folder, keys.part, NOW).kit


def snapshot(home):
    return {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_private_keys_are_the_owners_and_no_part_of_what_is_handed_over(home, keys):
    assert stat.S_IMODE((home / "identity").stat().st_mode) == 0o700
    for path in (keys.signing, keys.node):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        body = b"".join(path.read_bytes().splitlines()[1:-1])
        assert body[-40:] not in keys.public.read_bytes().replace(b"\\n", b"")
    assert b"PRIVATE" not in keys.public.read_bytes()
    assert read_site_part(keys.public) == keys.part


def test_keys_are_made_once(home, keys):
    before = snapshot(home)
    with pytest.raises(IdentityError, match=r"already, and nothing was changed; .*client rotate"):
        begin(home, "site-a", NOW)
    assert snapshot(home) == before


def test_a_name_that_cannot_be_one_leaves_nothing(home):
    with pytest.raises(ConfigError, match="--name = 'Site A': expected 1 to 63 of a-z"):
        begin(home, "Site A", NOW)
    assert not home.exists()


def test_a_site_joins_and_knows_its_consortium(home, folder, keys, kit):
    joined = join(home, kit, NOW)
    assert SiteIdentity.open(home) == joined
    assert joined.coordinator == folder.key.public
    assert joined.fingerprint == folder.fingerprint
    assert joined.authority.read_bytes() == folder.authority
    assert joined.keys_in_use() == keys
    assert join(home, kit, NOW) == joined  # the same kit again changes nothing


def test_who_has_not_joined_is_told_how(tmp_path, home, keys):
    with pytest.raises(IdentityError, match=r"has not joined a consortium; .*client join KIT"):
        _ = SiteIdentity.open(home).coordinator
    with pytest.raises(IdentityError, match=r"holds no site's identity; .*client init"):
        SiteIdentity.open(tmp_path)
    with pytest.raises(IdentityError, match="has not joined"):
        renew(home, NOW)


def test_another_sites_kit_is_refused(tmp_path, home, folder, keys, kit):
    other = admit(folder, begin(tmp_path / "b", "site-b", NOW).part, NOW).kit
    before = snapshot(home)
    with pytest.raises(IdentityError, match="is for keys of site site-b that are not here"):
        join(home, other, NOW)
    assert snapshot(home) == before


def test_another_consortiums_kit_is_refused(tmp_path, home, keys, kit):
    join(home, kit, NOW)
    other = found(tmp_path / "other", "other", ["x.example.org"], 443, NOW)
    foreign = admit(other, keys.part, NOW).kit
    before = snapshot(home)
    with pytest.raises(IdentityError, match=r"kit of another consortium \(other\).*is in demo"):
        join(home, foreign, NOW)
    assert snapshot(home) == before


def test_a_kit_made_up_for_the_right_consortium_is_refused(tmp_path, home, keys, kit):
    """Somebody knows the consortium's number and its roster, but not the coordinator's key."""
    join(home, kit, NOW)
    thief = found(tmp_path / "thief", "demo", ["evil.example.org"], 443, NOW).key
    document = json.loads(kit.read_text())
    content = document["content"] | {"gateway": "evil.example.org"}
    signature = thief.sign(canonical("kit 1", content)).hex()
    forged = tmp_path / "forged.json"
    said = {"content": content, "signer": thief.public, "signature": signature}
    forged.write_text(json.dumps(document | said))
    with pytest.raises(IdentityError, match="kit of another consortium"):
        join(home, forged, NOW)


def test_a_kit_that_was_changed_or_cut_short_is_refused(home, keys, kit):
    whole = kit.read_text()
    kit.write_text(whole.replace("gateway.example.org", "evil.example.org"))
    with pytest.raises(IdentityError, match="changed after it was signed"):
        join(home, kit, NOW)
    kit.write_text(whole[:500])
    with pytest.raises(IdentityError, match="cut short"):
        join(home, kit, NOW)
    kit.write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(IdentityError, match="of version 2, this consilia reads version 1"):
        join(home, kit, NOW)
    assert SiteIdentity.open(home).kit is None


def test_a_clock_that_is_years_off_is_named(home, keys, kit):
    with pytest.raises(IdentityError, match=r"expired on .*this machine's clock says"):
        join(home, kit, NOW + timedelta(days=4000))
    with pytest.raises(IdentityError, match="counts only from"):
        join(home, kit, NOW - timedelta(days=3))
    join(home, kit, NOW - timedelta(minutes=10))


def test_a_site_never_goes_back_to_an_older_roster(tmp_path, home, folder, keys, kit):
    old = tmp_path / "old.kit.json"
    shutil.copy(kit, old)
    spy = begin(tmp_path / "b", "site-b", NOW)
    admit(folder, spy.part, NOW)
    revoke(folder, "site-b", NOW)
    join(home, kit_for(folder, "site-a", NOW).kit, NOW)
    with pytest.raises(
        IdentityError, match=r"is older \(roster 2\) than the kit in use \(roster 4"
    ):
        join(home, old, NOW)
    member = SiteIdentity.open(home).pinned.content.roster.member("site-b")
    assert member.signing_keys(NOW) == ()


def test_other_sites_come_and_go_and_the_pinned_kit_stays_right(tmp_path, home, folder, keys, kit):
    join(home, kit, NOW)
    before = snapshot(home)
    admit(folder, begin(tmp_path / "b", "site-b", NOW).part, NOW)
    rotate(folder, "site-b", begin(tmp_path / "c", "site-b", NOW).part, WEEK, NOW)
    revoke(folder, "site-b", NOW)
    assert snapshot(home) == before
    assert SiteIdentity.open(home).keys_in_use().part.signing_key in folder.signing_keys("site-a")


def test_new_keys_are_used_once_their_kit_has_come_and_not_before(home, folder, keys, kit):
    join(home, kit, NOW)
    new = renew(home, NOW)
    assert new.part.name == "site-a"
    assert SiteIdentity.open(home).keys_in_use() == keys
    joined = join(home, rotate(folder, "site-a", new.part, WEEK, NOW).kit, NOW)
    assert joined.keys_in_use() == new
    assert not keys.folder.exists()
    with pytest.raises(IdentityError, match="is for keys of site site-a that are not here"):
        join(home, for_old_keys(kit, folder), NOW)


def for_old_keys(kit, folder):
    """A kit with the roster of today, for the keys that were replaced."""
    content = json.loads(kit.read_text())["content"]
    content["enrolment"] = content["roster"]["members"][0]["keys"][0]["enrolment"]
    document = {
        "consilia": "kit",
        "version": 1,
        "content": content,
        "signer": folder.key.public,
        "signature": folder.key.sign(canonical("kit 1", content)).hex(),
    }
    kit.write_text(json.dumps(document))
    return kit


def test_keys_that_others_can_read_or_that_are_not_ones_own_stop_the_site(
    home, tmp_path, keys, kit
):
    join(home, kit, NOW)
    keys.signing.chmod(0o604)
    with pytest.raises(IdentityError, match="others can open"):
        SiteIdentity.open(home).keys_in_use()
    keys.signing.chmod(0o600)
    other = begin(tmp_path / "b", "site-a", NOW)
    shutil.copy(other.signing, keys.signing)
    with pytest.raises(IdentityError, match=r"private keys are not those of its site\.json"):
        SiteIdentity.open(home).keys_in_use()
    shutil.copy(other.public, keys.public)
    shutil.copy(other.node, keys.node)
    assert SiteKeys.open(keys.folder).part == other.part
    with pytest.raises(IdentityError, match="are not the keys that the consortium admitted"):
        SiteIdentity.open(home).keys_in_use()


def test_a_couriers_folder_needs_the_nodes_key_alone(tmp_path, home, folder, keys, kit):
    join(home, kit, NOW)
    keys.signing.unlink()
    identity = SiteIdentity.open(home)
    assert identity.node_key() == keys.node
    with pytest.raises(IdentityError):
        identity.keys_in_use()
    other = begin(tmp_path / "b", "site-b", NOW)
    shutil.copy(other.node, keys.node)
    with pytest.raises(IdentityError, match="is not the key that the consortium admitted"):
        identity.node_key()
