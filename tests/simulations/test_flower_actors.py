"""Flower's actors: a node keeps its own, a dead one is replaced, nobody waits after the end."""

import threading
from types import SimpleNamespace

import pytest

from shared.errors import ConfigError

ray = pytest.importorskip("ray")

from flwr.server.superlink.fleet.vce.backend import raybackend  # noqa: E402

from simulations.flower_actors import SteadyBackend, count_actors, steady_actors  # noqa: E402

RESOURCES = {"num_cpus": 2, "num_gpus": 0.0}


class Actor:
    """An actor whose answers are worked out when they are waited for."""

    def __init__(self, number):
        self.number, self.dead, self.hold = number, threading.Event(), False
        self.run = SimpleNamespace(remote=lambda _app, message, *_: (self, message))


@pytest.fixture
def backend(monkeypatch):
    def get(answer):
        actor, message = answer
        if actor.hold:
            assert actor.dead.wait(10)
        if actor.dead.is_set():
            raise ray.exceptions.RayActorError
        return "node", f"{actor.number}:{message}", "context"

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda actor: actor.dead.set())
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(SteadyBackend, "init_ray", lambda *_: None)
    backend = SteadyBackend({"client_resources": RESOURCES})
    backend.app_fn = lambda: None
    numbers = iter(range(2, 100))
    backend.pool = SimpleNamespace(
        pool=[Actor(0), Actor(1)],
        create_actor_fn=lambda: Actor(next(numbers)),
        terminate_all_actors=lambda: None,
        num_actors=2,
    )
    return backend


def ask(backend, node):
    return backend.process_message("m", SimpleNamespace(node_config={"partition-id": node}))[0]


def test_a_node_keeps_its_actor(backend):
    assert [ask(backend, node) for node in (1, 0, 1, 3, 0)] == ["1:m", "0:m", "1:m", "1:m", "0:m"]
    assert backend.num_workers == 4


def test_a_dead_actor_is_an_error_once_and_replaced_once(backend):
    backend.pool.pool[1].dead.set()
    with pytest.raises(ray.exceptions.RayActorError):
        ask(backend, 1)
    assert [ask(backend, node) for node in (1, 0)] == ["2:m", "0:m"]


def test_the_end_waits_for_those_who_wait_and_starts_nothing_anew(backend):
    busy = backend.pool.pool[0]
    busy.hold, came = True, []

    def wait():
        with pytest.raises(ray.exceptions.RayActorError):
            ask(backend, 0)
        came.append(threading.current_thread())

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not backend._waiting:
        pass
    backend.terminate()
    assert backend._waiting == 0
    waiting.join(5)
    assert came
    assert backend.pool.pool == []  # not replaced
    backend.pool.pool = [Actor(7)]
    with pytest.raises(RuntimeError, match="ended"):
        ask(backend, 0)


def test_flowers_own_backend_comes_back(backend):
    own = raybackend.RayBackend
    with steady_actors():
        assert raybackend.RayBackend is SteadyBackend
    assert raybackend.RayBackend is own


def test_actors_are_counted(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert count_actors({"client_resources": RESOURCES, "init_args": {"num_cpus": 6}}) == 3


def test_a_cluster_that_is_not_there_is_one_line_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="no Ray cluster answers there") as caught:
        count_actors({"client_resources": RESOURCES, "init_args": {}})
    assert "\n" not in str(caught.value)
