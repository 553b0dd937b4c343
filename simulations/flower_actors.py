"""Flower's Ray actors: how many there are, and which one works for which node.

Flower hands a message to whichever actor is idle. Here a node keeps its actor, because what a
process has prepared for a site (records, pictures, activations) is worth keeping. An actor
whose process has died is replaced; Flower would go on handing messages to it. Needs ``ray``.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.common.constant import PARTITION_ID_KEY
from flwr.server.superlink.fleet.vce.backend import BackendConfig, raybackend
from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources

from shared.errors import ConfigError

_KNOCK_SECONDS = 5.0
_ENDING_SECONDS = 10.0


class SteadyBackend(raybackend.RayBackend):
    """Flower's Ray backend, except that a node keeps its actor."""

    def __init__(self, backend_config: BackendConfig) -> None:
        super().__init__(backend_config)
        self._lock = threading.Lock()
        self._waiting = 0
        self._ended = False

    @property
    def num_workers(self) -> int:
        """Messages on their way at once: for every actor the next one is there already."""
        return 2 * super().num_workers

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Let the node's actor answer a message; return the answer and the node's context."""
        pool, app = self.pool, self.app_fn
        if pool is None or app is None:
            raise RuntimeError("the backend was not built")
        node = str(context.node_config[PARTITION_ID_KEY])
        number = int(node) % len(pool.pool)
        with self._lock:
            if self._ended:
                raise RuntimeError("the run has ended")
            actor: Any = pool.pool[number]
            answer = actor.run.remote(app, message, node, context)
            self._waiting += 1
        try:
            _, reply, after = ray.get(answer)
        except ray.exceptions.RayActorError:
            self._renew(number, actor)
            raise
        finally:
            with self._lock:
                self._waiting -= 1
        return reply, after

    def _renew(self, number: int, dead: object) -> None:
        """Replace a dead actor, unless another message that met it has seen to that."""
        with self._lock:
            pool = self.pool
            if pool is not None and not self._ended and pool.pool[number] is dead:
                start: Any = pool.create_actor_fn
                pool.pool[number] = start()

    def terminate(self) -> None:
        """End all actors, busy or not.

        Who waits for an answer when Ray ends would wait for ever, and who asks it for anything
        afterwards would start it anew. So the actors are ended first.
        """
        with self._lock:
            self._ended = True
        if self.pool is not None:
            actors: list[Any] = list(self.pool.pool)
            for actor in actors:
                ray.kill(actor)
            self.pool.pool.clear()
        deadline = time.monotonic() + _ENDING_SECONDS
        while self._waiting and time.monotonic() < deadline:
            time.sleep(0.02)
        super().terminate()


@contextmanager
def steady_actors() -> Iterator[None]:
    """Let Flower's simulation engine use ``SteadyBackend``; there is no public way."""
    own = raybackend.RayBackend
    vars(raybackend)["RayBackend"] = SteadyBackend
    try:
        yield
    finally:
        vars(raybackend)["RayBackend"] = own


def count_actors(config: Mapping[str, Any]) -> int:
    """Return how many actors Flower will start.

    Args:
        config: From ``simulations.flower_engine.backend_config``.

    Raises:
        ConfigError: If a cluster was named and is not there, or if none of its machines can
            take an actor.
    """
    resources, address = config["client_resources"], os.environ.get("RAY_ADDRESS")
    if not address:
        return int(config["init_args"]["num_cpus"] // resources["num_cpus"])
    try:
        _knock(address)
        ray.init(**config["init_args"])
        return int(pool_size_from_resources(resources))
    except OSError:
        raise ConfigError(
            f"RAY_ADDRESS = {address}: no Ray cluster answers there; start one with "
            "`ray start --head`, or unset RAY_ADDRESS to use this machine alone"
        ) from None
    except ValueError:
        raise ConfigError(
            f"RAY_ADDRESS = {address}: no machine of the cluster offers the "
            f"{resources['num_cpus']} CPUs and {resources['num_gpus']:.0f} GPUs that a worker "
            "needs; lower simulation.threads, or start Ray with more"
        ) from None
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise unless something answers at ``host:port``; Ray itself would try for minutes.

    Raises:
        OSError: If nothing does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
