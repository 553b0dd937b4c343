"""A consortium of real processes over a bad network ends with the bits of an undisturbed one.

Slow: minutes for each run. Between the couriers and the gateway stands a proxy
(``tests.integration.network``) or a line that loses packets (``tests.integration.packets``).
"""

import contextlib
import itertools
import time

import pytest

from client.data.sources import find_sites
from tests.integration.lab import Lab, running
from tests.integration.network import BadNetwork, Weather
from tests.integration.packets import HERE, LossyLine, why_not

pytestmark = pytest.mark.slow

KINDS = ("paired", "image", "text")
MEGABIT = 125_000  # bytes per second
PATIENCE = 1500  # seconds for a run of three rounds over the worst of these networks


def found_lab(folder, federation, base, **options):
    lab = Lab(folder, base, [site.name for site in find_sites(federation.data)], **options)
    lab.found(federation.data)
    return lab


def write_job(lab, name, rounds, steps):
    """A job that gives its sites time."""
    path = lab.write_job(name, rounds, steps)
    path.write_text(path.read_text().replace("deadline_seconds = 240.0", "deadline_seconds = 1e4"))
    return path


@pytest.fixture(scope="module")
def net(make_federation, clip_folder, tmp_path_factory):
    """A lab, and a network of its own for each of its sites."""
    folder = tmp_path_factory.mktemp("lab")
    lab = found_lab(folder, make_federation(folder, KINDS), clip_folder)
    write_job(lab, "bad", 3, 4)
    with contextlib.ExitStack() as stack:
        networks = {
            site: stack.enter_context(BadNetwork(("127.0.0.1", lab.gateway_port), seed=number))
            for number, site in enumerate(lab.sites)
        }
        lab.through.update({s: f"localhost:{n.port}" for s, n in networks.items()})
        stack.enter_context(running(lab))
        yield lab, networks


@contextlib.contextmanager
def weather(networks, bad):
    """Bad weather for all connections, those that are open too; fine again afterwards."""
    for network in networks.values():
        network.weather = bad
        network.cut_all()
    try:
        yield
    finally:
        for network in networks.values():
            network.weather = Weather()
            network.cut_all()


def tell(name, lab, run, networks, seconds):
    rounds = " ".join(f"{record.seconds:.0f}" for record in lab.rounds(run))
    print(f"\n{name}: {seconds:.0f} s, rounds of {rounds} s")
    for site, network in networks.items():
        print(f"  {site}: {network.counts}")


def check(lab, run, end, job):
    """A run that lost no site has the bits of the simulation; one that did says so."""
    contributors = [record.contributors for record in lab.rounds(run)]
    assert contributors == [len(lab.sites)] * len(contributors), f"{contributors} contributed"
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == lab.simulated(job)


def carry_out(name, lab, networks, during=None):
    """Submit the job, wait for its end, and check it."""
    begun = time.monotonic()
    run = lab.submit(lab.folder / "bad.toml")
    if during is not None:
        during(run)
    end = lab.finish_well(run, PATIENCE)
    tell(name, lab, run, networks, time.monotonic() - begun)
    check(lab, run, end, "bad")
    return run


def test_delay_cuts_and_a_narrow_line_cost_time_and_no_bit(net):
    """300 ms, 1 Mbit/s; every fifth connection is refused, and one ends every 60 kB or so."""
    lab, networks = net
    bad = Weather(delay=0.3, rate=MEGABIT, refuse=0.2, cut_after=60_000)
    with weather(networks, bad):
        carry_out("delay and cuts", lab, networks)
    counts = [network.counts for network in networks.values()]
    assert sum(each.refused for each in counts) >= 3
    assert sum(each.cut for each in counts) >= 6


def test_a_network_that_is_dark_for_40_seconds_costs_no_bit(net):
    """All sites are gone in the middle of a round, and nobody is told."""
    lab, networks = net

    def go_dark(run):
        lab.wait_for(run, lambda e: (e["kind"], e.get("round")) == ("round-started", 2), 600)
        for network in networks.values():
            network.go_dark(40)

    run = carry_out("dark for 40 s", lab, networks, go_dark)
    assert lab.rounds(run)[1].seconds > 30


def test_corrupted_bytes_break_a_connection_and_reach_nobody(net):
    """TLS notices every changed bit, so the question is asked again over another connection.

    Flower takes that for the end of its SuperNode, so it costs a site up to a minute each time.
    """
    lab, networks = net
    before = sum(network.counts.corrupted for network in networks.values())
    with weather(networks, Weather(corrupt_after=150_000)):
        carry_out("corruption", lab, networks)
    assert sum(network.counts.corrupted for network in networks.values()) - before >= 3


def test_eight_sites_and_twenty_rounds_over_a_line_that_loses_every_fifth_packet(
    make_federation, clip_folder, tmp_path
):
    """20 % of the packets are lost and 300 ms pass to the other end and back, for all sites."""
    kinds = list(itertools.islice(itertools.cycle(KINDS), 8))
    federation = make_federation(tmp_path, kinds)
    missing = why_not()
    with contextlib.ExitStack() as stack:
        if missing is None:
            line = stack.enter_context(LossyLine(loss=0.2, delay=0.15, seed=8))
            options = {"hosts": (HERE,), "inside": line.inside}
            print(f"\nover a line of packets between two namespaces, {line.loss:.0%} lost")
        else:
            options = {}
            print(f"\nover the proxy, which cuts connections where packets are lost: {missing}")
        # Every "working" answer costs a process of Flower's, and eight sites share two cores here.
        lab = found_lab(tmp_path, federation, clip_folder, answer_seconds=20.0, **options)
        if missing is None:
            lab.through.update(dict.fromkeys(lab.sites, f"{HERE}:{lab.gateway_port}"))
        else:
            bad = Weather(delay=0.15, refuse=0.2, cut_after=60_000)
            target = ("127.0.0.1", lab.gateway_port)
            for number, site in enumerate(lab.sites):
                network = stack.enter_context(BadNetwork(target, bad, seed=number))
                lab.through[site] = f"localhost:{network.port}"
        write_job(lab, "eight", 20, 4)
        stack.enter_context(running(lab))
        begun = time.monotonic()
        run = lab.submit(tmp_path / "eight.toml")
        end = lab.finish_well(run, 5400)
        seconds = [record.seconds for record in lab.rounds(run)]
        print(f"20 rounds of 8 sites in {time.monotonic() - begun:.0f} s")
        print("rounds: " + " ".join(f"{each:.0f}" for each in seconds))
        if missing is None:
            print(f"{line.carried} packets arrived, {line.lost} did not")
        check(lab, run, end, "eight")
