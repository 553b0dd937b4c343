"""The way to the gateway, with real TLS on loopback: what is wrong is named, and what to do."""

import socket
from datetime import UTC, datetime, timedelta

import pytest

from client.check.contact import Contact, Route, visit
from client.check.finding import NotCheckedError
from client.check.network import (
    judge_certificate,
    judge_clock,
    judge_health,
    judge_name,
    judge_port,
)
from shared.security.certificates import new_authority
from shared.security.consortium import Kit, Roster

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=500)
NUMBER = "0" * 32


@pytest.fixture
def kit(authority, gateway):
    return Kit(
        consortium=NUMBER,
        consortium_name="demo",
        site="north",
        enrolment=NUMBER,
        gateway="localhost",
        port=gateway.port,
        authority=authority.certificate.decode(),
        roster=Roster(consortium=NUMBER, edition=1),
        created=NOW,
    )


@pytest.fixture
def met(gateway, authority, server_of, tmp_path):
    """What comes of a visit to a gateway that shows a certificate; the consortium's if none."""

    def visited(shown=None, host="localhost"):
        gateway.show(tmp_path, shown or server_of())
        return visit(Route.to(host, gateway.port), authority.certificate, 2.0)

    return visited


def test_a_gateway_that_is_right(met, kit, gateway):
    contact = met()
    assert judge_name(contact).state == judge_port(contact).state == "ok"
    certificate = judge_certificate(contact, kit, NOW)
    assert certificate.state == "ok"
    assert "TLSv1.3, signed by the consortium, until 20" in certificate.found
    assert judge_health(contact).state == "ok"
    assert judge_clock(contact).state == "ok"
    assert abs(contact.ahead_seconds) < 1.5


def test_nothing_but_health_is_asked(met, gateway):
    met()
    (asked,) = gateway.asked
    assert asked.startswith(b"GET /health HTTP/1.1\r\n")
    assert b"\r\n\r\n" in asked
    assert asked.endswith(b"\r\n\r\n")


def test_an_expired_certificate(met, kit, server_of):
    finding = judge_certificate(met(server_of(made=LONG_AGO)), kit, NOW)
    assert finding.state == "fail"
    assert "expired on 20" in finding.found
    assert "server renew" in finding.do
    assert "clock" in finding.do


def test_a_certificate_that_counts_only_later(met, kit, server_of):
    finding = judge_certificate(met(server_of(made=NOW + timedelta(days=9))), kit, NOW)
    assert "counts only from" in finding.found


def test_a_certificate_that_ends_soon(met, kit, server_of):
    finding = judge_certificate(met(server_of(made=NOW - timedelta(days=380))), kit, NOW)
    assert finding.state == "warn"
    assert "server renew" in finding.do


def test_another_consortiums_gateway(met, kit, server_of):
    other = server_of(by=new_authority("elsewhere", NOW))
    contact = met(other)
    finding = judge_certificate(contact, kit, NOW)
    assert finding.state == "fail"
    assert "the consortium elsewhere" in finding.found
    assert "fingerprints" in finding.do
    with pytest.raises(NotCheckedError):
        judge_health(contact)


def test_a_consortium_that_was_founded_anew(met, kit, server_of):
    finding = judge_certificate(met(server_of(by=new_authority("demo", NOW))), kit, NOW)
    assert "a new authority of the same name" in finding.found


def test_a_certificate_for_another_name(met, kit, server_of):
    finding = judge_certificate(met(server_of("gateway.example.org")), kit, NOW)
    assert finding.state == "fail"
    assert "the certificate is for gateway.example.org" in finding.found
    assert "for localhost" in finding.expected
    assert "--host localhost" in finding.do


def test_tls_that_is_opened_on_the_way(met, kit, server_of, foreign):
    """The issuer is named: that is what IT asks for first."""
    inspecting = foreign("Web Gateway CA 7", "Hospital IT")
    finding = judge_certificate(met(server_of(by=inspecting)), kit, NOW)
    assert finding.state == "fail"
    assert "signed by Web Gateway CA 7, Hospital IT: a proxy on the way opens TLS" in finding.found
    assert "out of TLS inspection" in finding.do


def test_a_port_without_tls(gateway, authority, kit):
    contact = visit(Route.to("localhost", gateway.port), authority.certificate, 2.0)
    assert judge_port(contact).state == "ok"
    finding = judge_certificate(contact, kit, NOW)
    assert finding.state == "fail"
    assert "no TLS at localhost" in finding.found


def test_a_server_that_says_nothing(authority, kit):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        contact = visit(Route("localhost", silent.getsockname()[1]), authority.certificate, 0.2)
    assert "no answer to the handshake" in judge_certificate(contact, kit, NOW).found


def test_a_closed_port(authority, kit):
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
    contact = visit(Route("127.0.0.1", port), authority.certificate, 2.0)
    finding = judge_port(contact)
    assert finding.state == "fail"
    assert f"127.0.0.1:{port}: connection refused" in finding.found
    assert "firewall" in finding.do
    assert "HTTPS_PROXY" in finding.do
    with pytest.raises(NotCheckedError):
        judge_certificate(contact, kit, NOW)


def test_a_packet_that_nobody_answers():
    contact = Contact(Route("gw.example", 443), "timeout", "no answer in 5 s")
    finding = judge_port(contact)
    assert "no answer in 5 s" in finding.found
    assert "open outbound TCP to gw.example:443 and nothing else" in finding.do


def test_an_unknown_name(monkeypatch, authority):
    def unknown(*_args, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    contact = visit(Route("gw.example", 443), authority.certificate)
    finding = judge_name(contact)
    assert finding.state == "fail"
    assert "gw.example cannot be resolved" in finding.found
    with pytest.raises(NotCheckedError):
        judge_port(contact)


def test_the_proxy_of_the_environment_is_used(met, gateway, proxy_of, monkeypatch, kit):
    with proxy_of(gateway) as (port, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        contact = met()
    assert contact.route.proxy == ("127.0.0.1", port)
    assert heads[0].startswith(f"CONNECT localhost:{gateway.port} HTTP/1.1".encode())
    assert judge_certificate(contact, kit, NOW).state == "ok"
    assert f"through the proxy 127.0.0.1:{port}" in judge_port(contact).found


def test_no_proxy_leads_around_it(met, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert met().status == 200


def test_a_proxy_that_lets_nobody_through(met, gateway, proxy_of, monkeypatch):
    with proxy_of(gateway, 407) as (port, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        finding = judge_port(met())
    assert finding.state == "fail"
    assert "HTTP/1.1 407" in finding.found
    assert f"CONNECT to localhost:{gateway.port}" in finding.do


@pytest.mark.parametrize(("minutes", "word"), [(10, "behind"), (-10, "ahead of")])
def test_a_clock_ten_minutes_off(met, gateway, minutes, word):
    gateway.ahead = timedelta(minutes=minutes)
    finding = judge_clock(met())
    assert finding.state == "fail"
    seconds = int(finding.found.split("clock is ")[1].split(" s")[0])
    assert abs(seconds - 600) <= 2
    assert word in finding.found
    assert "NTP" in finding.do


@pytest.mark.parametrize(
    ("ahead", "state"),
    [
        (2.0, "ok"),
        (4.0, "warn"),
        (6.0, "fail"),
        (-100.0, "warn"),
        (-304.0, "warn"),
        (-306.0, "fail"),
    ],
)
def test_the_window_of_a_superlink(ahead, state):
    contact = Contact(Route("gw.example", 443), ahead_seconds=ahead)
    assert judge_clock(contact).state == state


def test_the_window_is_flowers():
    from flwr.supercore.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    from client.check.network import FAST_CLOCK_SECONDS, SLOW_CLOCK_SECONDS

    assert FAST_CLOCK_SECONDS == SYSTEM_TIME_TOLERANCE
    assert SLOW_CLOCK_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_a_gateway_without_a_coordinator(met, gateway):
    gateway.status = 503
    finding = judge_health(met())
    assert (finding.state, finding.found) == ("fail", "/health: status 503")
    assert "server start" in finding.do
