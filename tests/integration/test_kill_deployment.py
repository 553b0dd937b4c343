"""Any process of a consortium may be killed at any moment; the run ends, with the same bits.

Every run of the loop loses one process, or two at once, at a random moment. ``KILLS`` sets how
many runs, ``KILL_SEED`` which; what was killed, and how long the run took then, is printed.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.data.sources import find_sites
from tests.integration.lab import Lab, running

RUNS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("KILL_SEED", "1"))
ROUNDS = 3
LONGEST_SECONDS = 300


@dataclass(frozen=True)
class Victim:
    """A process to kill.

    Attributes:
        name: For the table.
        command: Of the lab, if it is one of its commands; it is started again by the lab.
        program: Otherwise: what the process runs; its supervisor starts it again.
        place: Folder that tells it from others of its kind.
    """

    name: str
    command: str = ""
    program: str = ""
    place: Path | None = None


def victims(lab):
    """Return what may be killed."""
    site = lab.sites[0]
    return [
        *(Victim(f"agent {name}", command=f"agent-{name}") for name in lab.sites),
        Victim(f"courier {site}", command=f"courier-{site}"),
        Victim("supernode", program="flower-supernode", place=lab.site(site)),
        Victim("superexec of a site", program="flower-superexec", place=lab.site(site)),
        Victim("superexec", program="flower-superexec", place=lab.home),
        Victim("superlink", program="flower-superlink", place=lab.home),
        Victim("gateway", program="nginx", place=lab.home),
        Victim("serverapp", program="flwr-serverapp", place=lab.home),
        Victim("watcher", program="python -m server.watch", place=lab.home),
        Victim("coordinator, all of it", command="coordinator"),
    ]


def kill(lab, victim):
    """Kill a victim; return whether there was one."""
    if victim.command:
        lab.kill(victim.command)
        lab.start_again(victim.command)
        return True
    found = lab.pids(victim.program, victim.place)
    for pid in found[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder)
    lab = Lab(folder, clip_folder, [site.name for site in find_sites(federation.data)])
    lab.answer_seconds = 5.0
    lab.found(federation.data)
    lab.write_job("kill", ROUNDS, 30)
    with running(lab):
        yield lab


@pytest.mark.slow
def test_any_process_may_be_killed_at_any_moment(lab):
    chance = random.Random(SEED)
    job = lab.folder / "kill.toml"
    first = lab.submit(job)
    begun = time.monotonic()
    assert lab.finish_well(first)["adapter_sha256"] == lab.simulated("kill")
    usual = time.monotonic() - begun
    print(f"undisturbed: {usual:.0f} s")
    failed = []
    # Every victim once before any comes twice.
    order = [v for _ in range(RUNS // len(victims(lab)) + 1) for v in _shuffled(lab, chance)]
    for number, victim in enumerate(order[:RUNS], start=1):
        both = [victim, *([chance.choice(victims(lab))] if number % 4 == 0 else [])]
        run = lab.submit(job)
        begun = time.monotonic()
        moment = chance.uniform(0, usual)
        time.sleep(moment)
        hit = [each.name for each in both if kill(lab, each)]
        end = lab.finish_well(run, LONGEST_SECONDS)
        seconds = time.monotonic() - begun
        same = end["adapter_sha256"] == lab.simulated("kill")
        short = [r.round for r in lab.rounds(run) if r.contributors < len(lab.sites)]
        named = "" if not short else f", without a site in rounds {short}"
        what = " and ".join(hit) or "nothing (it was not there)"
        verdict = "the same bits" if same else "other bits"
        print(f"{number}: {what} at {moment:.0f} s: {seconds:.0f} s, {verdict}{named}", flush=True)
        if not same and not short:
            failed.append((number, hit, moment))
    assert failed == []


def _shuffled(lab, chance):
    found = victims(lab)
    chance.shuffle(found)
    return found
