"""The courier: imports no torch, passes bytes unchanged, and reaches the agent's socket."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app, client_app
from client.service import SocketChannel, serve
from shared.errors import ConfigError, WireError
from shared.wire import MESSAGE_TYPES, body_of, to_message

ROOT = Path(__file__).parents[2]
BODY = bytes(range(256)) * 5


@pytest.fixture(autouse=True, scope="module")
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class Recorder:
    def __init__(self):
        self.bodies = []

    def handle(self, body):
        self.bodies.append(body)
        return body[::-1]


def context(**node_config):
    return Context(1, 7, node_config, RecordDict(), {})


@pytest.fixture
def socket(tmp_path_factory):
    return tmp_path_factory.mktemp("s") / "agent.sock"


def test_the_courier_imports_neither_torch_nor_anything_that_sees_records():
    code = (
        "import sys, client.app\n"
        "heavy = {'torch', 'transformers', 'peft', 'PIL', 'pandas', 'sqlalchemy',"
        " 'client.agent', 'client.data', 'client.training', 'server'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # SQLAlchemy is a dependency of Flower's own.
    assert set(eval(ran.stdout)) <= {"sqlalchemy"}  # noqa: S307 - our own list


@pytest.mark.parametrize("kind", sorted(MESSAGE_TYPES))
def test_bytes_pass_unchanged_in_both_directions(kind):
    agent = Recorder()
    courier = client_app(lambda _: agent)
    reply = courier(to_message(BODY, 7, kind), context())
    assert agent.bodies == [BODY]
    assert body_of(reply) == BODY[::-1]


def test_the_agent_is_chosen_by_the_nodes_own_configuration():
    agents = {"a": Recorder(), "b": Recorder()}
    courier = client_app(lambda node: agents[node.node_config["site"]])
    courier(to_message(b"1", 7, "train"), context(site="b"))
    assert (agents["a"].bodies, agents["b"].bodies) == ([], [b"1"])


def test_a_request_goes_through_the_socket_and_back(socket):
    agent = Recorder()
    with serve(agent, socket):
        reply = app(to_message(BODY, 7, "train"), context(**{"agent-socket": str(socket)}))
    assert agent.bodies == [BODY]
    assert body_of(reply) == BODY[::-1]


def test_a_body_larger_than_grpcs_own_limit_passes(socket):
    body = os.urandom(9 * 2**20)
    with serve(Recorder(), socket):
        assert SocketChannel(socket).handle(body) == body[::-1]


def test_the_socket_belongs_to_its_owner_alone(socket):
    with serve(Recorder(), socket):
        mode = socket.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not socket.exists()


def test_a_missing_socket_in_the_configuration_is_named():
    with pytest.raises(ConfigError, match="agent-socket"):
        app(to_message(BODY, 7, "train"), context())


def test_an_agent_that_is_not_there_is_an_error_after_the_patience(socket):
    start = time.monotonic()
    with pytest.raises(WireError, match="nobody answers"):
        SocketChannel(socket, patience=0.4).handle(BODY)
    assert time.monotonic() - start < 5


def test_an_agent_that_comes_late_still_answers(socket):
    answers = []
    asking = threading.Thread(target=lambda: answers.append(SocketChannel(socket).handle(BODY)))
    asking.start()
    time.sleep(0.5)
    with serve(Recorder(), socket):
        asking.join(20)
    assert answers == [BODY[::-1]]


def test_the_text_of_an_agents_error_does_not_reach_the_courier_or_a_log(socket, caplog):
    class Broken:
        def handle(self, body):
            raise RuntimeError("a report says pneumonia")

    with serve(Broken(), socket), grpc.insecure_channel(f"unix:{socket}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/consilia.Agent/Handle")(BODY, timeout=10)
        with pytest.raises(WireError, match=r"^agent: internal$"):
            SocketChannel(socket).handle(BODY)
    assert caught.value.details() == "the agent failed"
    assert "pneumonia" not in caplog.text


def test_two_agents_cannot_share_a_socket(socket):
    taken = pytest.raises(ConfigError, match="another agent is running")
    with serve(Recorder(), socket), taken, serve(Recorder(), socket):
        pass


def test_a_file_in_the_sockets_place_is_left_alone(socket):
    socket.write_text("mine")
    with pytest.raises(ConfigError, match="not a socket"), serve(Recorder(), socket):
        pass
    assert socket.read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_named(tmp_path):
    with pytest.raises(ConfigError, match="bytes at most"):
        SocketChannel(tmp_path / ("x" * 120))


AGENT = """
import sys, time
from pathlib import Path
from client.service import serve
class Agent:
    def handle(self, body):
        return b"second " + body
with serve(Agent(), Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_agents_socket_is_replaced(socket):
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(socket)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        assert SocketChannel(socket).handle(b"x") == b"second x"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert socket.exists()
        with serve(Recorder(), socket):
            assert SocketChannel(socket).handle(b"xy") == b"yx"
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_one_request_at_a_time(socket):
    busy, most = [0], [0]

    class Counting:
        def handle(self, body):
            busy[0] += 1
            most[0] = max(most[0], busy[0])
            time.sleep(0.05)
            busy[0] -= 1
            return body

    with serve(Counting(), socket):
        threads = [
            threading.Thread(target=SocketChannel(socket).handle, args=(b"x",)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert most == [1]
