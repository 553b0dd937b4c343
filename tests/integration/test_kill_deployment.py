"""Any process of a consortium may be killed at any moment; the run ends, with the same bits.

Every run of the loop loses one process, or two at once, at a random moment. What was killed, and
how long the run took then, is printed. A short loop is in the default tests; the long one is slow:
``KILLS`` sets how many runs it has, ``KILL_SEED`` which.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from client.data.sources import find_sites
from tests.integration.lab import Lab, running

KILLS = int(os.environ.get("KILLS", "60"))
SEED = int(os.environ.get("KILL_SEED", "1"))
ROUNDS = 2
FIRST_SECONDS = 30.0
"""Of a first run: so long the agents load their bases, and so much of it there is to disturb."""

LONGEST_SECONDS = 900


@dataclass(frozen=True)
class Victim:
    """A process to kill.

    Attributes:
        name: For the table.
        kill: Kills it and sees to it that it comes back; returns whether there was one.
    """

    name: str
    kill: Callable[[], bool]


def victims(lab, postgres):
    """Return what may be killed."""
    site = lab.site(lab.sites[0])

    def command(name):
        """One of the lab's own commands, which the lab starts again."""
        lab.kill(name)
        lab.start_again(name)
        return True

    def program(name, place):
        """What another process supervises, and starts again."""
        found = lab.pids(name, place)
        for pid in found[:1]:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    def database():
        postgres.restart()
        return True

    return [
        *(Victim(f"agent {name}", partial(command, f"agent-{name}")) for name in lab.sites),
        Victim(f"courier {lab.sites[0]}", partial(command, f"courier-{lab.sites[0]}")),
        Victim("supernode", partial(program, "flower-supernode", site)),
        Victim("superexec of a site", partial(program, "flower-superexec", site)),
        Victim("superexec", partial(program, "flower-superexec", lab.home)),
        Victim("superlink", partial(program, "flower-superlink", lab.home)),
        Victim("gateway", partial(program, "nginx", lab.home)),
        Victim("serverapp", partial(program, "flwr-serverapp", lab.home)),
        Victim("watcher", partial(program, "python -m server.watch", lab.home)),
        Victim("coordinator, all of it", partial(command, "coordinator")),
        Victim("database", database),
    ]


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory, postgres):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder)
    history = {"CONSILIA_HISTORY": postgres.url(postgres.database())}
    lab = Lab(folder, clip_folder, [s.name for s in find_sites(federation.data)], history)
    lab.answer_seconds = 5.0
    lab.found(federation.data)
    lab.write_job("kill", ROUNDS, 30)
    with running(lab):
        yield lab


@pytest.fixture(scope="module")
def usual(lab):
    """Seconds of a run that nobody disturbs; of the second one, when the bases are loaded."""
    seconds = 0.0
    for _ in range(2):
        run = lab.submit(lab.folder / "kill.toml")
        begun = time.monotonic()
        assert lab.finish_well(run)["adapter_sha256"] == lab.simulated("kill")
        seconds = time.monotonic() - begun
    print(f"undisturbed: {seconds:.0f} s")
    return seconds


def carry_out(lab, longest, chance, number, killed):
    """Kill at a random moment of a run; return why it did not end as it must, if so."""
    run = lab.submit(lab.folder / "kill.toml")
    begun = time.monotonic()
    moment = chance.uniform(0, longest)
    time.sleep(moment)
    hit = [victim.name for victim in killed if victim.kill()]
    end = lab.finish_well(run, LONGEST_SECONDS)
    seconds = time.monotonic() - begun
    same = end["adapter_sha256"] == lab.simulated("kill")
    short = [r.round for r in lab.rounds(run) if r.contributors < len(lab.sites)]
    named = "" if not short else f", without a site in rounds {short}"
    what = " and ".join(hit) or "nothing (it was not there)"
    verdict = "the same bits" if same else "other bits"
    print(f"{number}: {what} at {moment:.0f} s: {seconds:.0f} s, {verdict}{named}", flush=True)
    return None if same or short else (number, hit, moment)


def test_an_agent_a_server_app_and_a_database_that_are_killed_cost_no_bit(lab, postgres):
    """The short loop, from the consortium's first run on; the long one has every victim."""
    chance = random.Random(SEED)
    some = {"agent", "serverapp", "database"}
    chosen = {v.name.partition(" ")[0]: v for v in victims(lab, postgres)}
    order = [[chosen[name]] for name in sorted(some)]
    ends = [carry_out(lab, FIRST_SECONDS, chance, n, one) for n, one in enumerate(order, start=1)]
    assert ends == [None] * len(some)


@pytest.mark.slow
def test_any_process_may_be_killed_at_any_moment(lab, usual, postgres):
    chance = random.Random(SEED)
    everyone = victims(lab, postgres)
    failed = []
    # Every victim once before any comes twice.
    rows = KILLS // len(everyone) + 1
    order = [v for _ in range(rows) for v in chance.sample(everyone, len(everyone))]
    for number, victim in enumerate(order[:KILLS], start=1):
        both = [victim, *([chance.choice(everyone)] if number % 4 == 0 else [])]
        # Later there is no run to disturb.
        failed.append(carry_out(lab, 0.95 * usual, chance, number, both))
    assert [each for each in failed if each] == []
