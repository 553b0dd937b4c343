"""What every process of a consortium tries to reach, seen from the kernel."""

import re
import shutil

import pytest

from client.data.sources import find_sites
from tests.integration.lab import Lab, running

pytestmark = pytest.mark.slow

CONNECT = re.compile(r"connect\(\d+, \{sa_family=(AF_\w+)(?:, (.*?))?\}, \d+\)")
INTERNET = re.compile(r"sin6?_port=htons\((\d+)\).*?\"([0-9a-f.:]+)\"")
PATH = re.compile(r'sun_path=@?"([^"]*)"')


@pytest.fixture(scope="module")
def traced(make_federation, clip_folder, tmp_path_factory):
    """A run under strace; returns the lab and what was connected to, by process."""
    strace = shutil.which("strace")
    assert strace, "this test needs strace; on Debian: apt-get install strace"
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder, ("paired", "image"))
    lab = Lab(folder, clip_folder, [site.name for site in find_sites(federation.data)])
    lab.found(federation.data)
    lab.write_job("job", 2, 2)
    lab.prefix = [strace, "-D", "-f", "-qq", "-e", "trace=connect", "-o"]
    with running(lab):
        run = lab.submit(folder / "job.toml")
        assert lab.finish_well(run, 400)["status"] == "finished"
    return lab, {log.stem: log.read_text() for log in folder.glob("*.trace")}


def targets(text):
    """Return the internet addresses and the sockets that were connected to."""
    internet, sockets, other = set(), set(), set()
    for family, rest in CONNECT.findall(text):
        if family in ("AF_INET", "AF_INET6"):
            port, address = INTERNET.search(rest).groups()
            internet.add((address, int(port)))
        elif family == "AF_UNIX":
            sockets.add(PATH.search(rest)[1])
        elif family != "AF_UNSPEC":
            other.add(family)
    return internet, sockets, other


def test_an_agent_connects_to_nothing(traced):
    lab, seen = traced
    for site in lab.sites:
        internet, sockets, other = targets(seen[f"agent-{site}"])
        # Port 0 and datagrams to oneself are how a library asks which addresses a machine has.
        assert {each for each in internet if each[1]} == set()
        assert sockets <= {"/var/run/nscd/socket"}
        assert other <= {"AF_NETLINK"}


def test_a_courier_reaches_the_gateway_the_agent_and_itself(traced):
    lab, seen = traced
    for site in lab.sites:
        internet, sockets, _ = targets(seen[f"courier-{site}"])
        assert {address for address, _ in internet} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        ports = {port for _, port in internet if port}
        assert lab.gateway_port in ports
        assert len(ports - {lab.gateway_port}) == 1  # where its SuperNode listens for its SuperExec
        assert lab.port not in ports
        agent = str((lab.site(site) / "run" / "agent.sock").absolute())
        assert sockets <= {agent, "/var/run/nscd/socket"}
        assert agent in sockets


def test_a_coordinator_reaches_its_superlink_only(traced):
    lab, seen = traced
    internet, sockets, _ = targets(seen["coordinator"])
    assert {address for address, _ in internet} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {port for _, port in internet if port} == {lab.port}
    assert sockets <= {"/var/run/nscd/socket"}
