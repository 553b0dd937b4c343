"""The sites of a run inside the processes of Flower's simulation engine (Ray).

Every actor process makes the agents it is asked for and keeps them, with one encoder for all
of them. What a site must remember between messages lies in its own folder, because its next
message may reach another actor.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client.agent import SiteAgent
from client.policy import simulation_policy
from client.settings import SiteSettings
from shared.config import JobConfig
from shared.errors import ConfigError
from simulations.machine import encoder_for, settle

_AGENTS: dict[str, SiteAgent] = {}
"""The agents of this process, by their folder."""


@dataclass(frozen=True)
class ActorSites:
    """All sites of a run; travels to the actors.

    Attributes:
        settings: The sites, in the order of Flower's partitions.
        job: The job.
    """

    settings: tuple[SiteSettings, ...]
    job: JobConfig

    def agent(self, partition: int) -> SiteAgent:
        """Return a site's agent in this process."""
        settings = self.settings[partition]
        key = str(settings.state)
        if key not in _AGENTS:
            device = settle(self.job)
            _AGENTS[key] = SiteAgent(
                settings, simulation_policy(), lambda job: encoder_for(job, device)
            )
        return _AGENTS[key]


def check_ray() -> None:
    """Raise unless Ray is installed.

    Raises:
        ConfigError: Saying how to install it.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "simulation.engine = 'flower' needs Ray, which is not installed; install it with "
            "`pip install 'consilia[ray]'` (in this repository: make setup-ray), or use "
            "--engine local"
        )


def backend_config(job: JobConfig, gpus: int, sites: int) -> dict[str, Any]:
    """Return what Flower tells Ray: how many actors, and what each of them may use.

    Args:
        job: Its threads become the CPUs of an actor; its workers the number of actors.
        gpus: GPUs of this machine to share among the actors; 0 for the CPU.
        sites: More actors than sites would only wait.
    """
    threads = job.simulation.threads
    actors = max(1, min(job.simulation.workers, sites))
    resources: dict[str, float] = {"num_cpus": threads, "num_gpus": min(1.0, gpus / actors)}
    init: dict[str, Any] = {"logging_level": 40, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):  # a cluster that is there knows its own size
        init |= {"num_cpus": actors * threads, "num_gpus": gpus}
    return {"init_args": init, "client_resources": resources}


def quiet_environment(threads: int) -> dict[str, str]:
    """Return the variables that keep Flower and Ray from calling home, and fix the threads."""
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a hint about the future
        "OMP_NUM_THREADS": str(threads),
    }


def partitions(settings: Sequence[SiteSettings]) -> tuple[SiteSettings, ...]:
    """Return the sites in the order of Flower's partitions, which is that of their names."""
    return tuple(sorted(settings, key=lambda site: site.name))
