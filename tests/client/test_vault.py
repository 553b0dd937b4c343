"""A site's files at rest: unreadable without its key, and the key can be changed at any moment."""

import json
import os
import signal
import stat

import pytest

import client.vault
from client.site_key import Credential, KeyFile, Passphrase
from client.vault import KEYRING, Vault, sealed_file
from shared.errors import IdentityError
from shared.security import sealing

MARKERS = (b"PERSONAL-ADAPTER-MARKER", b"REPORT-TEXT-MARKER")


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch):
    monkeypatch.setattr(sealing, "_SCRYPT_N", 2**4)


@pytest.fixture
def key(tmp_path):
    return KeyFile.make(tmp_path / "site.key")


@pytest.fixture
def vault(tmp_path, key):
    return Vault.create(tmp_path / "state", key)


def fill(vault, runs=3):
    for run in range(runs):
        vault.write(
            vault.folder / "personal" / f"{run}", MARKERS[0] * 50 + bytes([run]), f"run-{run}"
        )


def opens(vault, runs=3):
    return all(
        vault.read(vault.folder / "personal" / f"{run}") == MARKERS[0] * 50 + bytes([run])
        for run in range(runs)
    )


def test_sealed_files_open_again_in_another_process(vault, key):
    fill(vault)
    again = Vault.open(vault.folder, key)
    assert opens(again)
    assert sealed_file(vault.folder / "personal" / "0")
    assert not sealed_file(vault.folder / KEYRING)
    assert not sealed_file(vault.folder / "none")


def test_every_run_has_its_own_data_key(vault):
    fill(vault)
    keys = json.loads((vault.folder / KEYRING).read_text())["keys"]
    assert sorted(keys) == ["run-0", "run-1", "run-2"]
    assert len({vault._unwrapped(run) for run in keys}) == 3


def test_planted_markers_are_nowhere_on_the_disk(vault, key):
    for number, marker in enumerate(MARKERS):
        vault.write(vault.folder / f"{number}", marker * 100_000, "run")
    secret = bytes.fromhex(key.path.read_text().strip())
    data_key = vault._unwrapped("run")
    raw = [path.read_bytes() for path in vault.folder.rglob("*") if path.is_file()]
    assert sum(map(len, raw)) > 4_000_000
    for needle in (*MARKERS, secret, secret.hex().encode(), data_key, data_key.hex().encode()):
        assert all(needle not in content for content in raw)
    assert secret.hex() not in repr(vault) + repr(key)
    assert "passphrase text" not in repr(Passphrase("passphrase text"))


def test_files_are_private(vault):
    fill(vault)
    modes = {
        stat.S_IMODE(path.stat().st_mode) for path in vault.folder.rglob("*") if path.is_file()
    }
    assert modes == {0o600}


def test_a_key_that_others_can_read_is_refused(vault, key):
    key.path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"expected 0600.*chmod 600"):
        Vault.open(vault.folder, key)


def test_a_key_is_never_made_over_another(key):
    before = key.path.read_bytes()
    with pytest.raises(IdentityError, match="there already"):
        KeyFile.make(key.path)
    assert key.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"abc", b"zz" * 32, b"\xff\xfe", b"00" * 31])
def test_a_damaged_key_is_refused(vault, key, content):
    key.path.write_bytes(content)
    with pytest.raises(IdentityError, match="64 hexadecimal digits"):
        Vault.open(vault.folder, key)


def test_a_wrong_passphrase_says_so(tmp_path):
    right = Passphrase("correct horse battery")
    fill(Vault.create(tmp_path / "state", right))
    assert opens(Vault.open(tmp_path / "state", right))
    with pytest.raises(IdentityError, match="passphrase: is not the key"):
        Vault.open(tmp_path / "state", Passphrase("correct horse batterx"))
    with pytest.raises(IdentityError, match="12"):
        Vault.open(tmp_path / "state", Passphrase("short"))


def test_a_systemd_credential_is_read_from_its_folder(tmp_path, key):
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "consilia").write_bytes(key.path.read_bytes())
    credential = Credential("consilia", {"CREDENTIALS_DIRECTORY": str(folder)})
    fill(Vault.create(tmp_path / "state", credential))
    assert opens(Vault.open(tmp_path / "state", key))
    for environment in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}):
        with pytest.raises(IdentityError, match="LoadCredentialEncrypted=consilia"):
            Vault.open(tmp_path / "state", Credential("consilia", environment))


def test_rotation_wraps_keys_anew_and_touches_no_sealed_file(vault, key, tmp_path):
    fill(vault, runs=100)
    before = {path: path.read_bytes() for path in (vault.folder / "personal").iterdir()}
    new = KeyFile.make(tmp_path / "new.key")
    vault.rotate(new)
    assert {path: path.read_bytes() for path in (vault.folder / "personal").iterdir()} == before
    assert opens(vault, 100)
    assert opens(Vault.open(vault.folder, new), 100)
    with pytest.raises(IdentityError, match="is not the key"):
        Vault.open(vault.folder, key)
    old = bytes.fromhex(key.path.read_text().strip())
    for run, wrapped in json.loads((vault.folder / KEYRING).read_text())["keys"].items():
        with pytest.raises(sealing.SealError):
            sealing.unwrap(old, bytes.fromhex(wrapped), run)


def test_rotation_from_a_file_to_a_passphrase(vault):
    fill(vault)
    vault.rotate(Passphrase("correct horse battery"))
    assert opens(Vault.open(vault.folder, Passphrase("correct horse battery")))


def test_a_rotation_that_is_killed_anywhere_leaves_everything_readable(vault, key, tmp_path):
    """Killed before each call that touches the disk, until a rotation gets through."""
    fill(vault)
    new = KeyFile.make(tmp_path / "new.key")
    outcomes = []
    for survives in range(20):
        child = os.fork()
        if child == 0:
            kill_after(survives)
            Vault.open(vault.folder, key).rotate(new)
            os._exit(0)
        done = os.waitpid(child, 0)[1] == 0
        holds = new if _is_key(vault, new) else key
        assert opens(Vault.open(vault.folder, holds))
        outcomes.append((done, holds is new))
        if holds is new:
            break
    assert outcomes[0] == (False, False)
    assert outcomes[-1][1]
    assert len(outcomes) >= 3


def kill_after(survives):
    """Let so many calls that change the disk through, and kill the process at the next."""
    left = [survives]

    def counted(call):
        def wrapper(*arguments, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*arguments, **more)

        return wrapper

    os.fsync, os.fchmod = counted(os.fsync), counted(os.fchmod)
    os.replace = counted(os.replace)
    os.rename = counted(os.rename)


def _is_key(vault, key):
    try:
        Vault.open(vault.folder, key)
    except IdentityError:
        return False
    return True


def test_two_processes_may_make_data_keys(vault, key):
    other = Vault.open(vault.folder, key)
    vault.write(vault.folder / "a", b"a", "run-1")
    other.write(vault.folder / "b", b"b", "run-2")
    other.write(vault.folder / "c", b"c", "run-1")
    assert [vault.read(vault.folder / name) for name in "abc"] == [b"a", b"b", b"c"]


def test_a_process_that_missed_a_rotation_is_told(vault, key, tmp_path):
    other = Vault.open(vault.folder, key)
    vault.rotate(KeyFile.make(tmp_path / "new.key"))
    with pytest.raises(IdentityError, match="start again with the new one"):
        other.write(vault.folder / "a", b"a", "new-run")


def test_a_file_that_was_moved_changed_or_is_plain_does_not_open(vault):
    fill(vault)
    folder = vault.folder / "personal"
    (folder / "0").rename(folder / "moved")
    (folder / "1").write_bytes((folder / "1").read_bytes()[:-1])
    (folder / "plain").write_bytes(b"plain")
    for name, says in (("moved", "cannot be opened"), ("1", "cannot be opened"), ("plain", "seal")):
        with pytest.raises(IdentityError, match=says):
            vault.read(folder / name)
    with pytest.raises(FileNotFoundError):
        vault.read(folder / "none")


def test_a_file_whose_data_key_is_gone_does_not_open(vault, key):
    fill(vault)
    ring = json.loads((vault.folder / KEYRING).read_text())
    del ring["keys"]["run-0"]
    (vault.folder / KEYRING).write_text(json.dumps(ring))
    with pytest.raises(IdentityError, match="no data key"):
        Vault.open(vault.folder, key).read(vault.folder / "personal" / "0")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"consilia": 1}', b'{"a": 1, "a": 2}']
)
def test_a_damaged_keyring_is_refused(vault, key, content):
    (vault.folder / KEYRING).write_bytes(content)
    with pytest.raises(IdentityError, match="damaged"):
        Vault.open(vault.folder, key)


def test_a_missing_keyring_and_one_that_is_there_are_told_apart(vault, key, tmp_path):
    with pytest.raises(IdentityError, match="there already"):
        Vault.create(vault.folder, key)
    with pytest.raises(IdentityError, match="cannot be read"):
        Vault.open(tmp_path / "none", key)
    assert client.vault.KEYRING == "keyring.json"
