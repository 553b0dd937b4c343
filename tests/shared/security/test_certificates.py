"""Certificates: handshakes in memory, and one sentence for each that is wrong."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import IdentityError
from shared.security.certificates import (
    SERVER_DAYS,
    check_authority,
    check_server,
    load_certified,
    names_of,
    new_authority,
    new_server,
    trusting,
)
from shared.security.private_files import write_secret

NOW = datetime.now(UTC)
HOSTS = ["gateway.example.org", "192.0.2.7", "localhost"]


@pytest.fixture(scope="module")
def authority():
    return new_authority("demo", NOW)


@pytest.fixture(scope="module")
def server(authority):
    return new_server(authority, "demo", HOSTS, NOW)


def written(folder, certified):
    write_secret(folder / "key", certified.key)
    (folder / "crt").write_bytes(certified.certificate)
    return folder / "key", folder / "crt"


def handshake(folder, server, authority, host):
    """Shake hands in memory; return the protocol."""
    key, certificate = written(folder, server)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    trusted = trusting(authority.certificate)
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT  # as newer versions of Python do by themselves
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusted.wrap_bio(back, there, server_hostname=host)
    peer = serving.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (client, peer):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.version()


@pytest.mark.parametrize("host", HOSTS)
def test_a_site_shakes_hands_with_the_gateway_by_any_of_its_names(
    tmp_path, authority, server, host
):
    assert handshake(tmp_path, server, authority, host) == "TLSv1.3"


def test_another_host_another_authority_and_an_old_certificate_get_no_handshake(
    tmp_path, authority, server
):
    cases = {
        "host": (server, authority, "other.example.org"),
        "authority": (server, new_authority("demo", NOW), HOSTS[0]),
        "old": (
            new_server(authority, "demo", HOSTS, NOW - timedelta(days=500)),
            authority,
            HOSTS[0],
        ),
    }
    for name, (its_server, trusted, host) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(folder, its_server, trusted, host)


def test_only_tls_1_2_or_newer_is_spoken(authority):
    assert trusting(authority.certificate).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_right_certificate_passes(authority, server):
    check_authority(authority.certificate, "ca.crt", NOW)
    for host in HOSTS:
        check_server(server.certificate, authority.certificate, host, "server.crt", NOW)
    assert names_of(server.certificate, "x") == HOSTS


def test_a_wrong_certificate_says_what_where_and_what_to_do(authority, server):
    foreign = new_server(new_authority("other", NOW), "other", HOSTS, NOW)
    late, early = NOW + timedelta(days=SERVER_DAYS + 1), NOW - timedelta(days=2)
    cases = [
        (server, HOSTS[0], late, r"server\.crt: .*expired on .*clock says.*server renew"),
        (server, HOSTS[0], early, r"counts only from .*this machine's clock says"),
        (foreign, HOSTS[0], NOW, r"not signed by this consortium's authority"),
        (server, "x.org", NOW, r"is for gateway\.example\.org, 192\.0\.2\.7.*expected x\.org"),
    ]
    for certified, host, now, message in cases:
        with pytest.raises(IdentityError, match=message) as caught:
            check_server(certified.certificate, authority.certificate, host, "server.crt", now)
        assert "\n" not in str(caught.value)
    # Clocks of sites may be behind by minutes.
    behind = NOW - timedelta(minutes=10)
    check_server(server.certificate, authority.certificate, HOSTS[0], "server.crt", behind)


def test_a_servers_certificate_is_no_authority(server):
    with pytest.raises(IdentityError, match=r"kit: expected the certificate of an authority"):
        check_authority(server.certificate, "kit", NOW)
    with pytest.raises(IdentityError, match="cut short"):
        check_authority(server.certificate[:100], "kit", NOW)


def test_key_and_certificate_must_belong_together(tmp_path, authority, server):
    key, certificate = written(tmp_path, server)
    assert load_certified(key, certificate, "the server") == server
    certificate.write_bytes(authority.certificate)
    with pytest.raises(IdentityError, match="is not the certificate of"):
        load_certified(key, certificate, "the server")
    key.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_certified(key, certificate, "the server")
    assert "PRIVATE" not in repr(server)
