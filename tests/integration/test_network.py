"""The bad network does what its weather says, and the same for the same seed."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.integration.network import BadNetwork, Weather
from tests.integration.packets import HERE, LossyLine, why_not


@pytest.fixture
def echo():
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(link):
        with link, contextlib.suppress(OSError):
            while piece := link.recv(65536):
                link.sendall(piece)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()
    listener.close()


def send(network, content, seconds=10):
    """Send everything, read until the end; return what came back and whether it was a reset."""
    came, resets = b"", []

    def sending(link):
        try:
            link.sendall(content)
        except OSError as error:  # the system tells only one of the two who use the connection
            resets.append(error)

    try:
        with socket.create_connection((network.host, network.port), timeout=seconds) as link:
            writer = threading.Thread(target=sending, args=(link,), daemon=True)
            writer.start()
            while len(came) < len(content) and (piece := link.recv(65536)):
                came += piece
            writer.join(seconds)
    except ConnectionResetError as error:
        resets.append(error)
    return came, bool(resets)


CONTENT = bytes(range(256)) * 400  # 102 400 bytes


def test_in_good_weather_bytes_pass_as_they_are(echo):
    with BadNetwork(echo) as network:
        assert send(network, CONTENT) == (CONTENT, False)
        counts = network.counts
    assert (counts.connections, counts.up, counts.down) == (1, len(CONTENT), len(CONTENT))
    assert (counts.cut, counts.refused, counts.corrupted) == (0, 0, 0)


def test_an_end_of_one_direction_passes(echo):
    with (
        BadNetwork(echo) as network,
        socket.create_connection((network.host, network.port)) as link,
    ):
        link.sendall(b"abc")
        link.shutdown(socket.SHUT_WR)
        link.settimeout(5)
        assert link.recv(10) == b"abc"
        assert link.recv(10) == b""


def test_delay_is_paid_once_per_direction_however_much_is_on_its_way(echo):
    with BadNetwork(echo, Weather(delay=0.15)) as network:
        began = time.monotonic()
        assert send(network, CONTENT)[0] == CONTENT
        assert 0.3 <= time.monotonic() - began < 1.0


def test_the_rate_is_kept(echo):
    with BadNetwork(echo, Weather(rate=200_000)) as network:
        began = time.monotonic()
        assert send(network, CONTENT)[0] == CONTENT
        # Up and down at the same time, a piece behind each other.
        assert 0.5 <= time.monotonic() - began < 1.5


def test_a_cut_connection_is_reset_in_the_middle_of_what_it_carried(echo):
    with BadNetwork(echo, Weather(cut_after=20_000), seed=1) as network:
        came, reset = send(network, CONTENT)
        assert reset
        assert CONTENT.startswith(came)
        assert len(came) < len(CONTENT)
        assert network.counts.cut >= 1


def test_the_same_seed_means_the_same_fate(echo):
    def fates(seed):
        with BadNetwork(echo, Weather(refuse=0.4, corrupt_after=5000), seed=seed) as network:
            return [send(network, CONTENT) for _ in range(12)]

    first = fates(3)
    assert fates(3) == first
    assert fates(4) != first
    assert {reset for _, reset in first} == {True, False}


def test_the_share_of_refused_connections(echo):
    with BadNetwork(echo, Weather(refuse=0.2), seed=0) as network:
        for _ in range(100):
            send(network, b"x")
        assert 10 <= network.counts.refused <= 30


def test_corrupted_bytes_are_few_and_differ_in_one_bit(echo):
    with BadNetwork(echo, Weather(corrupt_after=10_000), seed=5) as network:
        came, _ = send(network, CONTENT)
        wrong = [(a, b) for a, b in zip(came, CONTENT, strict=True) if a != b]
        assert 5 <= len(wrong) <= 40
        assert network.counts.corrupted >= len(wrong)
        assert sum((a ^ b).bit_count() for a, b in wrong) == len(wrong)


def test_in_the_dark_nothing_comes_and_nothing_breaks(echo):
    with (
        BadNetwork(echo) as network,
        socket.create_connection((network.host, network.port)) as link,
    ):
        link.settimeout(0.3)
        link.sendall(b"a")
        assert link.recv(10) == b"a"
        network.go_dark(1.0)
        began = time.monotonic()
        link.sendall(b"b")
        with pytest.raises(TimeoutError):
            link.recv(10)
        link.settimeout(5)
        assert link.recv(10) == b"b"
        assert time.monotonic() - began >= 0.9


def test_all_connections_can_be_cut_at_once(echo):
    with (
        BadNetwork(echo) as network,
        socket.create_connection((network.host, network.port)) as link,
    ):
        link.settimeout(5)
        link.sendall(b"a")
        assert link.recv(10) == b"a"
        network.cut_all()
        with pytest.raises(ConnectionResetError):
            link.recv(10)


def test_a_target_that_is_not_there_is_a_reset(echo):
    free = socket.create_server(("127.0.0.1", 0))
    nobody = free.getsockname()
    free.close()
    with BadNetwork(nobody) as network:
        assert send(network, b"x") == (b"", True)


def test_a_judge_cuts_at_chosen_bytes(echo):
    with BadNetwork(echo, judge=lambda way, piece: way == "up" and b"STOP" in piece) as network:
        assert send(network, b"go") == (b"go", False)
        assert send(network, b"STOP") == (b"", True)


def test_a_line_that_loses_packets_is_slow_and_carries_everything():
    """Where the machine lets us make one; elsewhere the proxy stands in, as it says."""
    missing = why_not()
    if missing is not None:
        print(f"no lossy line: {missing}")
        return
    with LossyLine(0.2, 0.05, seed=2) as line, socket.create_server((HERE, 0)) as listener:
        script = (
            "import socket, sys\n"
            f"link = socket.create_connection({listener.getsockname()}, 30)\n"
            "link.sendall(bytes(range(256)) * 80)\n"
            "link.shutdown(socket.SHUT_WR)\n"
            "assert link.recv(10) == b'whole'\n"
        )
        began = time.monotonic()
        sender = subprocess.Popen([*line.inside, sys.executable, "-c", script])
        link, _ = listener.accept()
        came = b""
        while piece := link.recv(65536):
            came += piece
        link.sendall(b"whole")
        assert sender.wait(60) == 0
        link.close()
    assert came == bytes(range(256)) * 80
    assert time.monotonic() - began > 0.2
    assert line.lost > 0
    assert line.carried > 20
