"""The gateway, a real nginx, before a real SuperLink: what it lets through and what not."""

import os
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest

from client.liveness import Liveness, is_connected
from client.node_session import NodeSession
from client.provisioning.folder import SiteIdentity
from server.home import CoordinatorHome
from server.nodes import NodeChanges, keep_nodes, online_sites
from server.provisioning.admission import revoke
from server.provisioning.folder import ConsortiumFolder
from server.provisioning.gateway import FLEET_CALLS
from shared.errors import FlowerError
from shared.flower_calls import SuperLink
from shared.processes import Unit
from shared.security.node_keys import NodeKey
from tests.integration.lab import Lab

SITES = ["north", "south", "west"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Gateway and SuperLink; the sites have kits, and no processes."""
    lab = Lab(tmp_path_factory.mktemp("lab"), None, SITES)
    where = ("--host", "localhost", "--port", lab.gateway_port)
    made = lab.json("server", "init", lab.home, "--name", "lab", *where, "--json")
    for site in SITES:
        lab.site(site).mkdir(parents=True)
        lab.admit(site, made["fingerprint"])
    parts = ("--part", "gateway", "--part", "superlink")
    lab.start("coordinator", "server", "start", "--home", lab.home, "--port", lab.port, *parts)
    try:
        end = time.monotonic() + 60
        while not gateway(lab).is_well(1.0):
            assert time.monotonic() < end, (lab.folder / "coordinator.log").read_text()
            time.sleep(0.2)
        keep_nodes(ConsortiumFolder.open(lab.home), CoordinatorHome.at(lab.home).superlink())
        yield lab
    finally:
        lab.stop()


def gateway(lab):
    authority = ConsortiumFolder.open(lab.home).paths.authority
    return SuperLink(f"https://localhost:{lab.gateway_port}", authority)


def status_of(lab, path, *, method="POST", body=b"", port=None, headers=None):
    """Return the status of a request as it stands: urllib would tidy up its path."""
    authority = ConsortiumFolder.open(lab.home).paths.authority
    context = ssl.create_default_context(cafile=authority)
    head = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body))}
    lines = [
        f"{method} {path} HTTP/1.1",
        *(f"{k}: {v}" for k, v in {**head, **(headers or {})}.items()),
    ]
    with (
        socket.create_connection(("localhost", port or lab.gateway_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as link,
    ):
        link.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return int(link.recv(4096).split()[1])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/pull-task",
        "/docs",
        "/openapi.json",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "//v1/control/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/",
    ],
)
def test_what_no_node_needs_is_not_there(lab, path):
    assert status_of(lab, path) == 404


def test_the_same_call_answers_on_loopback(lab):
    """So that the test above shows the gateway's work, and not a wrong path."""
    head = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    assert status_of(lab, "/v1/control/list-nodes", port=lab.port, headers=head) == 200


@pytest.mark.parametrize("call", FLEET_CALLS)
def test_a_call_without_a_nodes_signature_is_refused(lab, call):
    assert (
        status_of(lab, f"/v1/fleet/{call}", headers={"content-type": "application/protobuf"}) == 401
    )
    assert status_of(lab, f"/v1/fleet/{call}", method="GET") == 403


def test_health_is_for_everybody(lab):
    assert status_of(lab, "/health", method="GET") == 200


def test_a_body_above_flowers_chunks_is_refused_before_it_is_read(lab):
    head = {"content-type": "application/protobuf"}
    chunk = b"\0" * (5 * 2**20 + 2000)
    assert status_of(lab, "/v1/fleet/push-object", body=chunk, headers=head) != 413
    declared = {**head, "Content-Length": str(2 * 2**30)}
    assert status_of(lab, "/v1/fleet/push-object", headers=declared) == 413


def test_old_tls_and_plain_http_are_refused(lab):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("localhost", lab.gateway_port)) as plain,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(plain)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://localhost:{lab.gateway_port}/health", timeout=5)
    assert refused.value.code == 400


def test_another_authority_is_not_trusted(lab, tmp_path):
    other = Lab(tmp_path, None, [])
    other.json("server", "init", other.home, "--name", "other", "--host", "localhost", "--json")
    stranger = ConsortiumFolder.open(other.home).paths.authority
    assert not SuperLink(gateway(lab).url, stranger).is_well()
    assert gateway(lab).is_well()


def session(lab, site, memory):
    keys = SiteIdentity.open(lab.site(site)).keys_in_use()
    return NodeSession(gateway(lab), keys.node, memory)


def test_a_session_that_goes_on_is_ended_and_another_may_begin(lab, tmp_path):
    memory = tmp_path / "node.json"
    north = session(lab, "north", memory)
    north.end()  # learns the node's number
    key = NodeKey.load(north.key)
    number = north.gateway.activate(key)
    assert str(number) in memory.read_text()
    with pytest.raises(FlowerError) as taken:
        north.gateway.activate(key)  # as a SuperNode that comes back after SIGKILL
    assert taken.value.status == 412
    assert online(lab)["north"] == "online"
    north.end()
    assert online(lab)["north"] == "offline"
    assert north.gateway.activate(key) == number
    memory.write_text(memory.read_text().replace(str(number), "17"))  # of a database that is gone
    with pytest.raises(FlowerError):
        north.end()
    north.gateway.deactivate(key, number)
    north.end()
    assert str(number) in memory.read_text()


def test_another_sites_number_is_no_use_with_ones_own_key(lab, tmp_path):
    south = session(lab, "south", tmp_path / "node.json")
    number = south.gateway.activate(NodeKey.load(south.key))
    stranger = NodeKey.load(session(lab, "west", tmp_path / "w.json").key)
    with pytest.raises(FlowerError) as refused:
        south.gateway.deactivate(stranger, number)
    assert refused.value.status == 401
    with pytest.raises(FlowerError) as unknown:
        south.gateway.activate(NodeKey.new())
    assert unknown.value.status == 412


def test_a_revoked_site_is_shut_out_and_touches_no_other(lab):
    consortium = ConsortiumFolder.open(lab.home)
    superlink = CoordinatorHome.at(lab.home).superlink()
    west = NodeKey.load(SiteIdentity.open(lab.site("west")).keys_in_use().node)
    number = gateway(lab).activate(west)
    assert keep_nodes(consortium, superlink) == NodeChanges()
    revoke(consortium, "west", datetime.now(UTC))
    assert keep_nodes(consortium, superlink) == NodeChanges((), (number,))
    with pytest.raises(FlowerError):
        gateway(lab).activate(west)
    assert set(online(lab)) == {"north", "south"}
    assert keep_nodes(consortium, superlink) == NodeChanges()


def test_a_killed_gateway_is_back_in_seconds(lab):
    [master, *workers] = lab.pids("nginx", lab.home)
    assert workers == []  # a worker's command line names no folder
    os.kill(master, signal.SIGKILL)
    end = time.monotonic() + 10
    while not gateway(lab).is_well(1.0):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_process_without_a_connection_of_its_own_is_started_again(tmp_path):
    """A SuperNode that is alive and idle; here a process that opens none."""
    unit = Unit("courier", [["sleep", "60"]], tmp_path / "log", dict(os.environ))
    now = [0.0]
    liveness = Liveness(unit, own_port=1, silent_seconds=60, clock=lambda: now[0])
    try:
        unit.look()
        pids = unit.pids
        for now[0] in (1.0, 30.0, 59.0):
            liveness.look()
            assert unit.pids == pids
        now[0] = 61.5
        liveness.look()
        assert unit.pids == []
        unit.look()
        assert unit.pids not in ([], pids)
    finally:
        unit.stop()
    assert "no connection for 60 s" in (tmp_path / "log").read_text()


def test_only_a_connection_that_the_process_opened_counts():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not is_connected(os.getpid(), port)
        with socket.create_connection(("127.0.0.1", port)) as mine, listener.accept()[0]:
            assert is_connected(os.getpid(), port)
            assert mine.getsockname()[1] != port


def online(lab):
    return online_sites(ConsortiumFolder.open(lab.home), CoordinatorHome.at(lab.home).superlink())
