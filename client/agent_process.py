"""``consilia client agent``: the site's agent as a process that stays.

It needs no network, keeps the encoder between requests, and serves one run after another. Only
one agent works on a site's state at a time.
"""

import logging
import os
import stat
import sys
import threading
from pathlib import Path

import torch

from client.agent import SiteAgent
from client.compute import settle_process
from client.decisions import NOBODY, Party
from client.patience import PatientAgent
from client.permission import PermittedAgent
from client.policy import PolicyFile, PolicySource, SitePolicy
from client.sealed_state import AGENT_AT_WORK, opened
from client.secure_rounds import secure_sums_of
from client.secure_sum import SecureSums
from client.service import serve
from client.settings import AgentSettings, load_agent
from client.signed_agent import party_of, signed
from client.state import private_folder
from shared.config import JobConfig
from shared.errors import BaseModelError, ConfigError
from shared.files import held
from shared.memory import give_memory_back
from shared.model.base import TINY, base_digest, find_base
from shared.model.encoder import DualEncoder
from shared.processes import forbid_dumps, until_signal

_AT_ONCE = 4
"""Couriers, and whoever looks whether the agent is there."""


def run_agent(config: Path) -> int:
    """Serve the site of a ``site.toml`` until a signal; return the exit code.

    Raises:
        ConfigError: If site or policy file cannot be used, the data are not there, or another
            agent works on the same state or socket.
        BaseModelError: If the site's base cannot be read.
        IdentityError: If the state is sealed and its key is missing or another one.
        StorageError: If the state's folder cannot be written.
    """
    forbid_dumps()  # records and keys are in its memory
    # The agent loads what is on its disk, and asks nobody.
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    settings = load_agent(config)
    SitePolicy.load(settings.policy)  # says what is wrong with it before anybody asks
    home = config.absolute().parent
    party = party_of(home)
    if not settings.site.source.table.is_file():
        raise ConfigError(
            f"{config}: data.table = {str(settings.site.source.table)!r}: no such file; expected "
            "the site's metadata table"
        )
    base = base_digest(settings.base or find_base(TINY))
    private_folder(settings.site.state)
    with until_signal() as stopped, held(settings.site.state, AGENT_AT_WORK):
        settings = opened(settings)
        settle_process(settings.threads)
        policy = PolicyFile(settings.policy)
        sums = secure_sums_of(home, settings.site.state, policy)
        site = site_agent(settings, policy, party, sums)
        name, state = settings.site.name, settings.site.state
        patient = PatientAgent(_Threaded(site, settings.threads), name, settings.answer_seconds)
        permitted = PermittedAgent(patient, site.objection)
        agent = signed(permitted, site.refuse, home, name, state / "asked.json")
        _private_place(settings.socket.parent)
        with serve(agent, settings.socket, _AT_ONCE):
            _say(f"agent {settings.site.name} ready, base {base[:12]}, at {settings.socket}")
            stopped.wait()
        _say(f"agent {settings.site.name} stopped")
    if threading.active_count() > 1:
        # In the middle of a task: files are whole at any moment, and it is begun again.
        sys.stderr.flush()
        os._exit(0)
    return 0


def site_agent(
    settings: AgentSettings,
    policy: PolicySource,
    party: Party = NOBODY,
    sums: SecureSums | None = None,
) -> SiteAgent:
    """Return the agent of a site; it loads the base at its first request.

    Args:
        settings: What the site owns.
        policy: What it will do at all.
        party: Who asks.
        sums: What it does in secure sums.
    """

    def encoder(job: JobConfig) -> DualEncoder:
        model = job.model.model_copy(update={"base": own_base(settings, job)})
        return DualEncoder.load(model, job.lora, settings.site.device)

    return SiteAgent(settings.site, policy, encoder, party=party, sums=sums)


def own_base(settings: AgentSettings, job: JobConfig) -> str:
    """Return where the base is here; a job's own paths are the coordinator's, and not followed.

    Raises:
        BaseModelError: If the site has no base that the job could mean.
    """
    if settings.base is not None:
        return str(settings.base)
    if job.model.base == TINY:
        return TINY
    raise BaseModelError(
        "the job's base is not here; copy it to this machine and give its folder as base in "
        "site.toml"
    )


class _Threaded:
    """An agent whose answers are worked out with a number of threads, whoever calls it."""

    def __init__(self, agent: SiteAgent, threads: int) -> None:
        self._agent = agent
        self._threads = threads

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request."""
        torch.set_num_threads(self._threads)  # counts for the thread that calls it
        answer = self._agent.handle(body)
        give_memory_back()
        return answer


def _private_place(folder: Path) -> None:
    """Make the socket's folder, or check the one that is there.

    Raises:
        ConfigError: If others than its owner and group may enter it.
    """
    if not folder.exists():
        private_folder(folder)
    elif folder.stat().st_mode & stat.S_IRWXO:
        raise ConfigError(
            f"{folder}: anybody on this machine may enter the socket's folder; choose a folder of "
            f"its own, or run: chmod 700 {folder}"
        )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
