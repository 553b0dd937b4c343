"""A consortium is made whole or not at all, its secrets are private, nothing is overwritten."""

import re
import shutil
import stat
from datetime import UTC, datetime, timedelta

import pytest

from server.provisioning.folder import ConsortiumFolder, ConsortiumPaths
from server.provisioning.founding import found, renew_server
from server.provisioning.gateway import FLEET_CALLS, gateway_configuration
from shared.errors import ConfigError, IdentityError, StorageError
from shared.security.certificates import names_of

NOW = datetime.now(UTC)
HOST = "gateway.example.org"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "coordinator"


@pytest.fixture
def folder(home):
    return found(home, "demo", [HOST], 443, NOW)


def test_everything_is_there_and_fits_together(home, folder):
    again = ConsortiumFolder.open(home)
    assert again.consortium.name == "demo"
    assert again.roster().edition == 1
    assert again.roster().members == ()
    assert again.fingerprint == folder.fingerprint
    again.check_server()
    again.load_authority()
    names = names_of(folder.paths.server.read_bytes(), "x")
    assert names == [HOST, "localhost", "127.0.0.1"]


def test_secrets_are_for_their_owner_only(folder):
    keys = sorted(folder.paths.coordinator_key.parent.iterdir())
    assert [key.name for key in keys] == ["ca.key", "coordinator.key", "server.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE(folder.paths.folder.stat().st_mode) == 0o700
    everything_else = [
        path.read_bytes()
        for path in folder.paths.folder.rglob("*")
        if path.is_file() and path not in keys
    ]
    assert not any(b"PRIVATE" in content for content in everything_else)


def test_a_second_init_changes_nothing(home, folder):
    before = {p: p.read_bytes() for p in folder.paths.folder.rglob("*") if p.is_file()}
    with pytest.raises(IdentityError, match="holds a consortium already, and nothing was changed"):
        found(home, "other", [HOST], 443, NOW)
    assert {p: p.read_bytes() for p in folder.paths.folder.rglob("*") if p.is_file()} == before


def test_a_consortium_that_could_not_be_written_is_not_there(home, monkeypatch):
    def full(*_, **__):
        raise StorageError("no space left on the disk")

    monkeypatch.setattr("server.provisioning.founding.write_gateway", full)
    with pytest.raises(StorageError):
        found(home, "demo", [HOST], 443, NOW)
    assert list(home.iterdir()) == []
    monkeypatch.undo()
    found(home, "demo", [HOST], 443, NOW)


@pytest.mark.parametrize(
    ("name", "hosts", "port", "message"),
    [
        ("Demo", [HOST], 443, "--name = 'Demo': expected 1 to 63 of a-z"),
        ("demo", ["*.example.org"], 443, "--hosts"),
        ("demo", ["a b"], 443, "--hosts"),
        ("demo", ["https://x.org/"], 443, "--hosts"),
        ("demo", [], 443, "--hosts"),
        ("demo", [HOST], 0, "--port = 0: expected at least 1"),
    ],
)
def test_names_that_cannot_be_ones(home, name, hosts, port, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        found(home, name, hosts, port, NOW)
    assert not home.exists()


def test_a_folder_without_a_consortium_says_how_to_make_one(tmp_path):
    with pytest.raises(IdentityError, match=r"holds no consortium; make one with .*server init"):
        ConsortiumFolder.open(tmp_path)


def look_at_all(home):
    opened = ConsortiumFolder.open(home)
    opened.roster()
    opened.check_server()


def test_files_of_two_consortia_are_not_mixed(tmp_path, folder):
    other = found(tmp_path / "other", "other", [HOST], 443, NOW).paths
    mine, home = folder.paths, folder.paths.folder.parent
    for name, message in (
        ("coordinator_key", "signed by another coordinator"),
        ("consortium", "signed by another coordinator"),
        ("roster", "roster of another consortium"),
        ("server", "is not the certificate of"),
    ):
        path = getattr(mine, name)
        before = path.read_bytes()
        shutil.copy(getattr(other, name), path)
        with pytest.raises(IdentityError, match=message):
            look_at_all(home)
        path.write_bytes(before)
    shutil.copy(other.server, mine.server)
    shutil.copy(other.server_key, mine.server_key)
    with pytest.raises(IdentityError, match="not signed by this consortium's authority"):
        ConsortiumFolder.open(home).check_server()


def test_keys_that_others_can_read_stop_the_coordinator(home, folder):
    folder.paths.coordinator_key.chmod(0o640)
    with pytest.raises(IdentityError, match=r"coordinator\.key: others can open .*chmod 600"):
        ConsortiumFolder.open(home)


def test_a_new_certificate_is_for_more_hosts_and_of_the_same_authority(home, folder):
    authority, fingerprint = folder.authority, folder.fingerprint
    late = NOW + timedelta(days=390)
    assert renew_server(folder, ["second.example.org"], late) == [HOST, "second.example.org"]
    again = ConsortiumFolder.open(home)
    again.check_server(NOW + timedelta(days=700))
    assert (again.authority, again.fingerprint) == (authority, fingerprint)
    assert again.consortium.hosts == (HOST, "second.example.org")
    with pytest.raises(IdentityError, match="expired on"):
        again.check_server(NOW + timedelta(days=800))
    with pytest.raises(ConfigError):
        renew_server(again, ["no host"], NOW)


def test_the_gateway_lets_fleet_calls_and_health_through_and_nothing_else():
    text = gateway_configuration(8443, 8001)
    assert "listen 8443 ssl;" in text
    assert "server 127.0.0.1:8001;" in text
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in text
    assert text.count("{") == text.count("}")
    passed = re.findall(r"location (.+?) \{", text)
    assert passed == [f"~ ^/v1/fleet/({'|'.join(FLEET_CALLS)})$", "= /health", "@busy", "/"]
    assert "location / { return 404; }" in text
    assert not {"register-node", "unregister-node"} & set(FLEET_CALLS)
    filtered = re.compile(passed[0].removeprefix("~ "))
    assert filtered.fullmatch("/v1/fleet/pull-messages")
    for path in ("/v1/control/list-nodes", "/v1/fleet/register-node", "/v1/fleet/pull-messages/x"):
        assert not filtered.fullmatch(path)
    # A node that gets another code than 503 gives up for good.
    assert set(re.findall(r"return (\d+);", text)) == {"404", "503"}
    assert "limit_req_status 503;" in text
    assert "error_page 500 =503 @busy;" in text


def test_the_gateways_files_are_where_its_configuration_says(folder):
    text = (folder.paths.gateway / "nginx.conf").read_text()
    for path in re.findall(r"(\.\./[a-z./]+);", text):
        assert (folder.paths.gateway / path).resolve().is_file(), path
    assert (folder.paths.gateway / "tmp").is_dir()
    assert ConsortiumPaths.of(folder.paths.folder.parent) == folder.paths
