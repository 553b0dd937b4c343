"""A site's state becomes sealed and stays it, whoever is killed, and opens with the site's key."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest

import client.sealing_commands
import client.state
from client.audit import AuditLog
from client.check.sealing import judge_sealing
from client.keeping import IN_THE_CLEAR
from client.ledger import Population, PrivacyLedger
from client.own_factor import OwnFactor
from client.sealed_state import change_key, opened, private_files, seal_state
from client.settings import load_agent
from client.site_key import KeyFile, KeySource
from client.state import SiteState, StoredPersonal
from client.vault import KEYRING, Vault, sealed_file
from shared.adapter import adapter_sha256
from shared.config import parse_job
from shared.errors import ConfigError, IdentityError, RefusedError, StorageError
from shared.files import TEMPORARY, held
from shared.messages import Request
from shared.security import sealing
from tests.client.test_vault import kill_after

SITE = 'name = "north"\nstate = "state"\n[data]\ntable = "metadata.csv"\n'
TABLE = '[sealing]\nkey_file = "keys/site.key"\n'
PHRASE = '[sealing]\npassphrase = "fd:{}"\n'
ADAPTER = {"x.lora_A.weight": np.arange(3000, dtype=np.float32).reshape(2, 1500)}
SHA, QUESTION = "a" * 64, "b" * 64
NEEDLE = ADAPTER["x.lora_A.weight"][1, 200:210].tobytes()
KINDS = {"answer", "held/A", "personal", "own-factor", "privacy/ledger"}


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(sealing, "_SCRYPT_N", 2**4)
    # The limits would hold for the tests that follow as well.
    monkeypatch.setattr(client.sealing_commands, "forbid_dumps", lambda: None)


@pytest.fixture
def site(tmp_path):
    """A site with a file of each kind, in the clear, and the table that seals them."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "site.toml").write_text(SITE)
    fill(load_agent(tmp_path / "site.toml").site)
    name_key(tmp_path, TABLE)
    return tmp_path


def name_key(home, table):
    (home / "site.toml").write_text(SITE + table)


def settings_of(home):
    return load_agent(home / "site.toml")


def request():
    job = parse_job({"name": "job", "aggregate": {"rule": "fedsa"}})
    return Request(kind="train", run="run", round=1, site="north", base_sha256=SHA, job_sha256=SHA,
                   job=job, factors=("A",), weights={"image": 1}, scale=2.0**10)  # fmt: skip


def fill(site):
    state = SiteState(site.state, keeping=site.keeping)
    state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 1.0}), "run")
    state.hold("A", adapter_sha256(ADAPTER), ADAPTER, "run")
    state.keep_answer(QUESTION, NEEDLE * 50, "run")
    OwnFactor(site.state, request(), site.keeping).keep(1, ADAPTER)
    ledger_of(site).enrol(Population("chest", "d" * 64, ["PATIENT-1"]))
    (site.state / "pixels").mkdir(exist_ok=True)
    if site.pixels is not None:
        (site.pixels / "pixels").write_bytes(NEEDLE)


def ledger_of(site):
    return PrivacyLedger(site.state / "privacy", AuditLog(site.state / "audit.jsonl"), site.keeping)


def reads_all(home):
    """Whether everything can be read with the key of site.toml, by a process that just began."""
    site = opened(settings_of(home)).site
    SiteState(site.state)
    client.state._recent.clear()
    state = SiteState(site.state, keeping=site.keeping)
    assert adapter_sha256(state.load_personal(SHA).adapter) == adapter_sha256(ADAPTER)
    assert adapter_sha256(state.held("A", adapter_sha256(ADAPTER))) == adapter_sha256(ADAPTER)
    assert state.answer(QUESTION) == NEEDLE * 50
    own = OwnFactor(site.state, request(), site.keeping).after(1)
    assert adapter_sha256(own) == adapter_sha256(ADAPTER)
    assert ledger_of(site).entries() == []
    return True


def raw(home):
    return b"".join(p.read_bytes() for p in (home / "state").rglob("*") if p.is_file())


def test_sealing_once_seals_everything_private_and_loses_nothing(site):
    assert NEEDLE in raw(site)
    half_written = site / "state" / "held" / f"B.safetensors{TEMPORARY}"
    half_written.write_bytes(NEEDLE)
    assert seal_state(settings_of(site)) == 6
    assert NEEDLE not in raw(site)
    found = private_files(settings_of(site))
    assert (len(found.sealed), found.clear) == (5, ())
    assert {part for path in found.sealed for part in KINDS if part in str(path)} == KINDS
    assert not (site / "state" / "pixels").exists()
    assert reads_all(site)
    assert seal_state(settings_of(site)) == 0


def test_what_is_written_later_is_sealed_with_a_key_of_its_run(site):
    seal_state(settings_of(site))
    fill(opened(settings_of(site)).site)
    assert NEEDLE not in raw(site)
    assert reads_all(site)
    assert "run" in json.loads((site / "state" / KEYRING).read_text())["keys"]


def test_pictures_stay_if_the_site_says_so(site):
    name_key(site, TABLE + 'pictures = "disk"\n')
    assert seal_state(settings_of(site)) == 5
    assert (site / "state" / "pixels" / "pixels").read_bytes() == NEEDLE


def test_a_sealing_that_is_killed_anywhere_goes_on(site):
    (site / "state" / "held" / f"B.safetensors{TEMPORARY}").write_bytes(NEEDLE)
    kills = 0
    for survives in range(100):
        child = os.fork()
        if child == 0:
            try:
                kill_after(survives % 5)
                seal_state(settings_of(site))
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, "it failed, and was not killed"
        kills += 1
        if not (site / "state" / KEYRING).exists():
            with pytest.raises(IdentityError, match="nothing is sealed yet"):
                opened(settings_of(site))
    assert kills >= 5
    assert NEEDLE not in raw(site)
    assert reads_all(site)


def test_an_agent_does_not_start_beside_files_in_the_clear(site):
    with pytest.raises(IdentityError, match=r"nothing is sealed yet; run `consilia client seal`"):
        opened(settings_of(site))
    seal_state(settings_of(site))
    SiteState(site / "state").keep_answer(QUESTION, NEEDLE, "run")
    with pytest.raises(ConfigError, match=r"1 private files are not sealed.*answer among them"):
        opened(settings_of(site))


def test_a_sealed_state_is_not_taken_for_another_when_the_table_is_gone(site):
    seal_state(settings_of(site))
    name_key(site, "")
    with pytest.raises(ConfigError, match=r"is sealed.*expected the table \[sealing\]"):
        opened(settings_of(site))
    with pytest.raises(IdentityError, match="is sealed; expected the site's key"):
        SiteState(site / "state").load_personal(SHA)
    assert SiteState(site / "state").answer(QUESTION) is None


def test_a_state_without_the_table_is_as_it_was(site):
    name_key(site, "")
    assert opened(settings_of(site)).site.keeping is IN_THE_CLEAR
    assert reads_all(site)


def test_a_lost_keyring_is_said_and_never_made_anew(site):
    seal_state(settings_of(site))
    ring = (site / "state" / KEYRING).read_bytes()
    (site / "state" / KEYRING).unlink()
    for attempt in (opened, seal_state):
        with pytest.raises(IdentityError, match=r"is missing, and 5 files.*from a backup"):
            attempt(settings_of(site))
    (site / "state" / KEYRING).write_bytes(ring)
    assert reads_all(site)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def swap(path):
    """Put another sealed file of the same site and run in its place."""
    (other,) = path.parent.glob("*other*")
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [flip, cut, swap])
def test_a_file_that_was_touched_is_refused_by_name(site, harm):
    seal_state(settings_of(site))
    settings = opened(settings_of(site))
    state = SiteState(settings.site.state, keeping=settings.site.keeping)
    personal = site / "state" / "personal" / f"{SHA}.safetensors"
    settings.site.keeping.write(personal.with_name("other"), personal.read_bytes(), "run")
    harm(personal)
    with pytest.raises(IdentityError, match=rf"{SHA}.*cannot be opened.*from a backup"):
        state.load_personal(SHA)
    found = judge_sealing(settings_of(site))
    assert found.state == "fail"
    assert str(personal) in found.found
    for path, use in (
        (next((site / "state").glob("own-factor/*/*")), lambda: own_of(settings)),
        (site / "state" / "privacy" / "ledger", lambda: ledger_of(settings.site)),
    ):
        settings.site.keeping.write(path.with_name("other"), b"x", "run")
        harm(path)
        (path.parent / "other").unlink()
        with pytest.raises((IdentityError, RefusedError), match="from a backup"):
            use()
    # What can be had again is asked for again.
    for path in (site / "state" / "answer", site / "state" / "held" / "A.safetensors"):
        cut(path)
    client.state._recent.clear()
    assert state.answer(QUESTION) is None
    assert state.held("A", adapter_sha256(ADAPTER)) is None


def own_of(settings):
    return OwnFactor(settings.site.state, request(), settings.site.keeping).after(1)


def test_a_damaged_keyring_is_refused(site):
    seal_state(settings_of(site))
    path = site / "state" / KEYRING
    whole = json.loads(path.read_text())
    for field, value in (("salt", "00" * 32), ("site_key", "00" * 8)):
        path.write_text(json.dumps(whole | {field: value}))
        if field == "site_key":
            with pytest.raises(IdentityError, match="the keyring is damaged"):
                opened(settings_of(site))
    keys = {name: "00" + key[2:] for name, key in whole["keys"].items()}
    path.write_text(json.dumps(whole | {"keys": keys}))
    site_now = opened(settings_of(site)).site
    with pytest.raises(IdentityError, match=r"data key of .* is damaged.*from a backup"):
        SiteState(site_now.state, keeping=site_now.keeping).load_personal(SHA)
    before = path.read_bytes()
    with pytest.raises(IdentityError, match="is damaged"):
        change_key(settings_of(site), KeySource(key_file=site / "new.key"))
    assert path.read_bytes() == before


# The commands


def handed(words):
    reader, writer = os.pipe()
    os.write(writer, words.encode())
    os.close(writer)
    return reader


def test_the_command_seals_and_says_what_to_keep(site, command):
    ended = command("client", "seal", "--site", site)
    assert ended.code == 0
    assert "6 files now" in ended.out
    assert "Keep a copy of the key" in ended.out
    assert reads_all(site)
    key = (site / "keys" / "site.key").read_text().strip()
    assert key not in ended.out + ended.err
    assert json.loads(command("client", "seal", "--site", site, "--json").out)["sealed"] == 0


def test_the_command_needs_a_table(site, command):
    name_key(site, "")
    for line in (("seal",), ("rekey", "--key-file", site / "new.key")):
        ended = command("client", *line, "--site", site)
        assert ended.code == 2
        assert "[sealing]" in ended.line
    assert not (site / "new.key").exists()


def test_the_key_is_changed_and_the_files_stay_as_they_are(site, command):
    command("client", "seal", "--site", site)
    before = {path: path.read_bytes() for path in private_files(settings_of(site)).sealed}
    ended = command("client", "rekey", "--site", site, "--key-file", site / "new.key")
    assert ended.code == 0
    assert f'key_file = "{site}/new.key"' in ended.out
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(IdentityError, match="is not the key"):
        opened(settings_of(site))
    name_key(site, f'[sealing]\nkey_file = "{site}/new.key"\n')
    assert reads_all(site)


def test_from_a_key_file_to_a_passphrase_and_wrong_ones(site, command):
    command("client", "seal", "--site", site)
    new = f"fd:{handed('a passphrase of five words')}"
    assert command("client", "rekey", "--site", site, "--passphrase", new).code == 0
    name_key(site, PHRASE.format(handed("a passphrase of five words\n")))
    assert reads_all(site)
    name_key(site, PHRASE.format(handed("a passphrase of six words")))
    ended = command("client", "seal", "--site", site)
    assert ended.code == 2
    assert "the passphrase: is not the key" in ended.line
    assert "five" not in ended.err
    assert "six" not in ended.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "0 keys are named"),
        (("--credential", "c", "--passphrase", "ask"), "2 keys are named"),
        (("--passphrase", "my secret words"), "must stand in no file and no command"),
        (("--key-file", "state/new.key"), "is inside of the state"),
    ],
)
def test_a_wrong_new_key_is_refused(site, command, monkeypatch, options, says):
    monkeypatch.chdir(site)
    command("client", "seal")
    before = (site / "state" / KEYRING).read_bytes()
    ended = command("client", "rekey", *options)
    assert ended.code == 2
    assert says in ended.line
    assert "secret words" not in ended.err
    assert (site / "state" / KEYRING).read_bytes() == before


def test_a_sealed_adapter_can_be_used_with_the_key(site, command, monkeypatch):
    monkeypatch.chdir(site)
    command("client", "seal")
    file = site / "state" / "personal" / f"{SHA}.safetensors"
    ended = command("client", "open", file.relative_to(site), "--to", "own.safetensors")
    assert ended.code == 0
    opened_now, metadata = client.state.read_tensors((site / "own.safetensors").read_bytes())
    assert adapter_sha256(opened_now) == adapter_sha256(ADAPTER)
    assert json.loads(metadata["alpha"]) == {"image": 1.0}
    assert (site / "own.safetensors").stat().st_mode & 0o077 == 0
    for options, says in (
        ((file, "--to", "own.safetensors"), "is there already"),
        ((site / "state" / "audit.jsonl", "--to", "x"), "is no sealed file"),
        (("/etc/passwd", "--to", "x"), "is no sealed file"),
    ):
        ended = command("client", "open", *options)
        assert (ended.code, says in ended.line) == (2, True)


def test_nothing_is_changed_under_an_agent_at_work(site, command):
    command("client", "seal", "--site", site)
    with held(site / "state", "held"):
        for line in (("seal",), ("rekey", "--key-file", site / "new.key")):
            ended = command("client", *line, "--site", site)
            assert ended.code == 2
            assert "stop it first" in ended.line
    assert not (site / "new.key").exists()
    assert reads_all(site)


def test_a_key_that_others_can_read_opens_nothing(site, command):
    command("client", "seal", "--site", site)
    (site / "keys" / "site.key").chmod(0o644)
    with pytest.raises(IdentityError, match="expected 0600"):
        opened(settings_of(site))


# The line of the check


def test_the_check_says_whether_and_how(site):
    found = judge_sealing(settings_of(site))
    assert (found.state, "6 private files in the clear" in found.found) == ("fail", True)
    seal_state(settings_of(site))
    found = judge_sealing(settings_of(site))
    assert found.state == "ok"
    assert "5 files of 1 data keys, all open; prepared pictures stay in memory" in found.found
    name_key(site, TABLE + 'pictures = "disk"\n')
    assert judge_sealing(settings_of(site)).state == "warn"
    name_key(site, '[sealing]\npassphrase = "fd:9"\n')
    found = judge_sealing(settings_of(site))
    assert (found.state, "not opened, because nobody" in found.found) == ("ok", True)
    name_key(site, "")
    assert judge_sealing(settings_of(site)).state == "fail"
    (site / "keys" / "site.key").chmod(0o644)
    name_key(site, TABLE)
    found = judge_sealing(settings_of(site))
    assert (found.state, "expected 0600" in found.found) == ("fail", True)


def test_a_state_in_the_clear_is_a_warning(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    found = judge_sealing(settings_of(tmp_path))
    assert found.state == "warn"
    assert "is in the clear" in found.found


# Kills


def test_killed_at_any_moment_a_site_loses_no_sealed_file(tmp_path):
    """Every file is what was written last, or the one that was being written over it."""
    vault = Vault.create(tmp_path / "state", KeyFile.make(tmp_path / "site.key"))
    chance = random.Random(7)
    begun = 0
    for kills in range(400):
        if kills >= 40 and begun > 40:  # however slow the machine is
            break
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(vault, writer, begun)
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read().split()
        done = int(told[-1]) if told else begun
        again = Vault.open(vault.folder, KeyFile(tmp_path / "site.key"))
        for name in ("personal", "answer", "ledger") if done else ():
            content = again.read(vault.folder / name)
            assert int(content[:8]) in (done, done + 1), name
            assert content == b"%08d" % int(content[:8]) * 5000
        begun = done
    assert begun > 40


def write_for_ever(vault, pipe, number):
    while True:
        number += 1
        content = b"%08d" % number * 5000
        run = f"run-{number % 7}"
        vault.write(vault.folder / "personal", content, run)
        vault.overwrite(vault.folder / "answer", content[:8], content[8:], run)
        vault.write(vault.folder / "ledger", content, "ledger")
        os.write(pipe, b"%d\n" % number)


def test_a_full_disk_leaves_the_sealed_file_before(tmp_path, monkeypatch):
    vault = Vault.create(tmp_path / "state", KeyFile.make(tmp_path / "site.key"))
    vault.write(vault.folder / "answer", b"before", "run")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(StorageError, match="no space left"):
        vault.overwrite(vault.folder / "answer", b"af", b"ter", "run")
    assert vault.read(vault.folder / "answer") == b"before"
    assert sealed_file(vault.folder / "answer")
