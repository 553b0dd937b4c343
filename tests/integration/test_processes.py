"""A consortium of real processes on loopback: gateway, SuperLink, SuperExec, couriers, agents.

Slow: a minute for each run. The processes are those of the commands that people type.
"""

import json
import os
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from client.data.sources import find_sites
from shared.processes import QUIET
from tests.integration.lab import Lab, consilia, running, working_in

pytestmark = pytest.mark.slow

ROUNDS = 5


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder)
    lab = Lab(folder, clip_folder, [site.name for site in find_sites(federation.data)])
    lab.found(federation.data)
    lab.write_job("job", ROUNDS, 4)
    lab.write_job("long", 2, 60)
    with running(lab):
        yield lab


def test_real_processes_end_with_the_bits_of_a_simulation(lab):
    run = lab.submit(lab.folder / "job.toml")
    end = lab.finish(run)
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == lab.simulated("job")
    rounds = lab.rounds(run)
    assert [record.contributors for record in rounds] == [3] * ROUNDS
    for record in rounds:
        work = max(each.work_seconds for each in record.contributions)
        print(f"round {record.round}: {record.seconds:.1f} s, {work:.1f} s of it training")
    shown = json.loads(lab.server("status", run, "--json"))
    assert shown["coordinator"] == "up"
    assert [site["name"] for site in shown["runs"][0]["sites"]] == lab.sites
    assert {site["contributed"] for site in shown["runs"][0]["sites"]} == {ROUNDS}
    assert shown["runs"][0]["adapter_sha256"] == lab.simulated("job")


def test_an_agent_killed_while_it_trains_costs_no_bit(lab):
    """A second run of the same processes; the agent is killed and started again."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2, "a-paired"))
    lab.kill("agent-a-paired")
    lab.start_agent("a-paired")
    end = lab.finish(run)
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == lab.simulated("long")


@pytest.mark.parametrize(
    "victim", ["flwr-serverapp", "flower-superexec", "flower-superlink", "nginx"]
)
def test_a_coordinators_process_killed_in_a_round_costs_no_bit(lab, victim):
    """The watcher or the supervisor brings it back; nobody types anything."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2))
    pid = lab.pids(victim, lab.home)[0]
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    end = lab.finish(run)
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == lab.simulated("long")
    committed = [e for e in lab.events(run) if e["kind"] == "round-committed" and e["round"] == 2]
    stamp = datetime.fromisoformat(committed[0]["time"]).timestamp()
    print(f"{victim}: {stamp - killed:.1f} s from the kill to the round's end")


@pytest.mark.parametrize("victim", ["flower-supernode", "flower-superexec", "courier"])
def test_a_couriers_process_killed_in_a_round_costs_no_bit(lab, victim):
    """The old session is ended before the new one begins, so nobody waits for a minute."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2, "b-image"))
    killed = time.time()
    if victim == "courier":
        lab.kill("courier-b-image")
        lab.start_courier("b-image")
    else:
        os.kill(lab.pids(victim, lab.site("b-image"))[0], signal.SIGKILL)
    end = lab.finish(run)
    assert end["adapter_sha256"] == lab.simulated("long")
    committed = [e for e in lab.events(run) if e["kind"] == "round-committed" and e["round"] == 2]
    seconds = datetime.fromisoformat(committed[0]["time"]).timestamp() - killed
    print(f"{victim}: {seconds:.1f} s from the kill to the round's end")
    assert seconds < 45  # a session that nobody ends lasts for 60


def test_a_coordinator_killed_whole_goes_on_when_it_is_started_again(lab):
    """As when its machine dies; an agent goes with it."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2))
    lab.kill("coordinator")
    lab.kill("agent-c-text")
    lab.start_coordinator()
    lab.start_agent("c-text")
    end = lab.finish_well(run)
    assert end["adapter_sha256"] == lab.simulated("long")


def test_every_program_of_flowers_is_told_to_report_nothing(lab):
    programs = ("flower-superlink", "flower-superexec", "flower-supernode")
    found = {name: lab.pids(name) for name in programs}
    assert [len(found[name]) for name in programs] == [1, 4, 3]
    for pid in (pid for pids in found.values() for pid in pids):
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {f"{key}={value}".encode() for key, value in QUIET.items()} <= set(told)


def test_a_run_is_stopped_and_resumed(lab):
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2))
    lab.server("stop", run)
    assert json.loads(lab.server("status", run, "--json"))["runs"][0]["status"] == "stopped"
    time.sleep(4)  # nobody starts it again
    assert lab.pids("flwr-serverapp", lab.home) == []
    lab.server("submit", "--resume", run)
    end = lab.finish_well(run)
    assert end["adapter_sha256"] == lab.simulated("long")


def test_the_socket_belongs_to_its_owner_alone(lab):
    socket = lab.site("a-paired") / "run" / "agent.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    assert socket.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_agent_on_the_same_state_is_refused(lab):
    done = subprocess.run(
        consilia("client", "agent", "--config", lab.site("a-paired") / "site.toml"),
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "another agent works on this site's state" in done.stderr
