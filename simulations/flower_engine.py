"""The sites of a run inside the processes of Flower's simulation engine (Ray).

Every actor process makes the agents it is asked for and keeps them, with one encoder for all
of them. A node keeps its actor as long as that lives, so that a site finds what is prepared
for it. What a site must remember between messages lies in its own folder all the same: its
next message may come in another cohort, and reach another actor.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client.agent import SiteAgent
from client.patient_privacy import with_simulated_budget
from client.policy import simulation_policy
from client.settings import SiteSettings
from client.together import answer_together
from shared.config import JobConfig
from shared.errors import ConfigError, WireError
from shared.memory import give_memory_back
from simulations.bundles import bundle, unbundle
from simulations.machine import devices, encoder_for, settle

_AGENTS: dict[str, SiteAgent] = {}
"""The agents of this process, by their folder."""


@dataclass(frozen=True)
class ActorSites:
    """All sites of a run; travels to the actors, and answers there for whole cohorts.

    Attributes:
        settings: The sites, in the order of their names.
        job: The job.
    """

    settings: tuple[SiteSettings, ...]
    job: JobConfig

    def handle(self, body: bytes) -> bytes:
        """Return the bundled answers to bundled requests; the sites work all at once.

        Raises:
            WireError: If the body is no bundle, or is for a site that the run does not have.
        """
        asked = unbundle(body)
        agents = [self.agent(number) for number, _ in asked]
        requests = [request for _, request in asked]
        answers = answer_together(list(zip(agents, requests, strict=True)))
        give_memory_back()
        return bundle([(n, answer) for (n, _), answer in zip(asked, answers, strict=True)])

    def agent(self, number: int) -> SiteAgent:
        """Return a site's agent in this process.

        Raises:
            WireError: If there is no such site.
        """
        if number >= len(self.settings):
            raise WireError(f"bundle: site {number} of {len(self.settings)}")
        settings = self.settings[number]
        key = str(settings.state)
        if key not in _AGENTS:
            device = settle(self.job)
            _AGENTS[key] = SiteAgent(
                settings,
                with_simulated_budget(simulation_policy(), self.job),
                lambda job: encoder_for(job, device),
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


def gpus_here(job: JobConfig) -> int:
    """Return how many GPUs of this machine a job uses; 0 if it computes on the CPU."""
    device = settle(job)
    return len(devices(device)) if device == "cuda" else 0


def backend_config(job: JobConfig, gpus: int, sites: int) -> dict[str, Any]:
    """Return what Flower tells Ray: how many actors, and what each of them may use.

    Args:
        job: Its threads become the CPUs of an actor; its workers the number of actors on CPUs.
        gpus: Of this machine; every actor has one to itself. 0 for the CPU.
        sites: More actors than sites would only wait.
    """
    threads = job.simulation.threads
    actors = max(1, min(gpus or job.simulation.workers, sites))
    resources: dict[str, float] = {"num_cpus": threads, "num_gpus": float(gpus > 0)}
    init: dict[str, Any] = {"logging_level": 40, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):  # a cluster that is there knows its own size
        # Ray would join a cluster that happens to run on this machine, and refuse the sizes.
        init |= {"address": "local"}
        init |= {"num_cpus": actors * threads, "num_gpus": actors if gpus else 0}
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


def by_name(settings: Sequence[SiteSettings]) -> tuple[SiteSettings, ...]:
    """Return the sites in the order of their names, which is that of their numbers."""
    return tuple(sorted(settings, key=lambda site: site.name))
