"""A federation of real processes on loopback: SuperLink, SuperExec, watcher, couriers, agents.

Slow: a minute for each run. The processes are those of the commands that people type.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from client.data.sources import find_sites
from server.history import RunHistory
from shared.processes import QUIET, die_with_parent, free_port

pytestmark = pytest.mark.slow

ROUNDS = 3
JOB = """
name = "real"
seed = 3
rounds = {rounds}
[data]
sites = ["a-paired", "b-image", "c-text"]
[model]
base = "{base}"
precision = "float32"
[lora]
rank = 4
alpha = 8
[train]
steps = {steps}
batch_size = 16
shift_pixels = 1
[aggregate]
fold_every = 2
deadline_seconds = 240.0
[personalize]
rank = 4
steps = 6
[evaluate]
minimum_count = 1
bootstrap = 100
baselines = []
gallery_queries = 0
[simulation]
device = "cpu"
samples_at_once = 1
"""
SITE = """
name = "{name}"
state = "state"
base = "{base}"
device = "cpu"
answer_seconds = 0.5
[data]
table = "{table}"
"""
POLICY = "minimum_count = 1\nexact = true\nmax_change = 1e9\n"


def working_in(number, site=None):
    """Wanted: a site that is at work in a round."""

    def wanted(event):
        at = (event["kind"], event.get("round")) == ("site-working", number)
        return at and site in (None, event["site"])

    return wanted


def consilia(*arguments):
    return [sys.executable, "-m", "simulations.cli", *map(str, arguments)]


@dataclass
class Lab:
    """A coordinator and sites, each command a process."""

    folder: Path
    port: int
    sites: list[str]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def home(self):
        return self.folder / "co"

    def start(self, name, *arguments):
        log = (self.folder / f"{name}.log").open("ab")
        # As in an institution: nobody set anything for us.
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "CONSILIA_"))}
        self.processes[name] = subprocess.Popen(
            consilia(*arguments),
            stdout=log,
            stderr=log,
            env=keep,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - a killed test leaves nothing behind
        )
        log.close()

    def start_coordinator(self):
        where = ("--home", self.home, "--port", self.port)
        self.start("coordinator", "server", "start", *where)

    def start_agent(self, site):
        self.start(f"agent-{site}", "client", "agent", "--config", self.site(site) / "site.toml")

    def start_courier(self, site):
        folder = self.site(site)
        place = ("--socket", folder / "run" / "agent.sock", "--home", folder / "courier")
        where = ("--superlink", f"127.0.0.1:{self.port}", "--insecure")
        self.start(f"courier-{site}", "client", "courier", *where, *place)

    def site(self, name):
        return self.folder / "sites" / name

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(10)

    def call(self, *arguments):
        done = subprocess.run(
            consilia(*arguments, "--home", self.home),
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, job):
        return re.search(r"Run (\S+)", self.call("server", "submit", job))[1]

    def events(self, run):
        path = self.home / "runs" / run / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, run, wanted, seconds=150):
        """Wait for an event of a run; a process that died in between shows in the message."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [event for event in self.events(run) if wanted(event)]
            if found:
                return found[-1]
            time.sleep(0.1)
        raise AssertionError(f"not seen within {seconds} s: {self.events(run)[-5:]}")

    def finish(self, run):
        return self.wait_for(run, lambda event: event["kind"] == "run-finished")

    def rounds(self, run):
        with RunHistory.at(self.home / "history.sqlite") as history:
            return history.committed_rounds(run)

    def pids(self, program):
        """Return the processes of the coordinator that run a program of Flower's."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes().decode(errors="replace")
                if f"/{program}\0" in line and f"{self.port}" in line:
                    found.append(int(process.name))
        return found

    def stop(self):
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder)
    lab = Lab(folder, free_port(), [s.name for s in find_sites(federation.data)])
    for name, rounds, steps in (("job", ROUNDS, 4), ("long", 2, 60)):
        text = JOB.format(base=clip_folder, rounds=rounds, steps=steps)
        (folder / f"{name}.toml").write_text(text.replace('"real"', f'"real-{name}"'))
    for source in find_sites(federation.data):
        place = lab.site(source.name)
        place.mkdir(parents=True)
        text = SITE.format(name=source.name, base=clip_folder, table=source.table)
        (place / "site.toml").write_text(text)
        (place / "policy.toml").write_text(POLICY)
    try:
        lab.start_coordinator()
        for site in lab.sites:
            lab.start_agent(site)
            lab.start_courier(site)
        end = time.monotonic() + 90
        while "ready" not in (folder / "coordinator.log").read_text():
            assert time.monotonic() < end, (folder / "coordinator.log").read_text()
            time.sleep(0.2)
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="module")
def simulated(lab):
    """The adapter's digest of a job under ``consilia simulate``."""
    known = {}

    def digest(name):
        if name not in known:
            out = lab.folder / "sim"
            command = consilia("simulate", lab.folder / f"{name}.toml", "--json")
            done = subprocess.run(
                [*command, "--data", str(lab.folder / "data"), "--out", str(out)],
                capture_output=True,
                check=True,
            )
            known[name] = json.loads(done.stdout)["adapter_sha256"]
        return known[name]

    return digest


def test_real_processes_end_with_the_bits_of_a_simulation(lab, simulated):
    run = lab.submit(lab.folder / "job.toml")
    end = lab.finish(run)
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == simulated("job")
    rounds = lab.rounds(run)
    assert [record.contributors for record in rounds] == [3] * ROUNDS
    for record in rounds:
        work = max(each.work_seconds for each in record.contributions)
        print(f"round {record.round}: {record.seconds:.1f} s, {work:.1f} s of it training")
    shown = json.loads(lab.call("server", "status", run, "--json"))
    assert shown["coordinator"] == "up"
    assert [site["name"] for site in shown["runs"][0]["sites"]] == lab.sites
    assert {site["contributed"] for site in shown["runs"][0]["sites"]} == {ROUNDS}
    assert shown["runs"][0]["adapter_sha256"] == simulated("job")


def test_an_agent_killed_while_it_trains_costs_no_bit(lab, simulated):
    """A second run of the same processes; the agent is killed and started again."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2, "a-paired"))
    lab.kill("agent-a-paired")
    lab.start_agent("a-paired")
    end = lab.finish(run)
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == simulated("long")


@pytest.mark.parametrize("victim", ["flwr-serverapp", "flower-superexec", "flower-superlink"])
def test_a_coordinators_process_killed_in_a_round_costs_no_bit(lab, simulated, victim):
    """The watcher or the supervisor brings it back; nobody types anything."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2))
    [pid] = lab.pids(victim)
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    end = lab.finish(run)
    assert end["status"] == "finished"
    assert end["adapter_sha256"] == simulated("long")
    committed = [e for e in lab.events(run) if e["kind"] == "round-committed" and e["round"] == 2]
    stamp = datetime.fromisoformat(committed[0]["time"]).timestamp()
    print(f"{victim}: {stamp - killed:.1f} s from the kill to the round's end")


def test_a_coordinator_killed_whole_goes_on_when_it_is_started_again(lab, simulated):
    """As when its machine dies; an agent goes with it."""
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2))
    lab.kill("coordinator")
    lab.kill("agent-c-text")
    lab.start_coordinator()
    lab.start_agent("c-text")
    end = lab.wait_for(run, lambda e: e.get("status", "").startswith("finished"), 240)
    assert end["adapter_sha256"] == simulated("long")


def test_every_program_of_flowers_is_told_to_report_nothing(lab):
    programs = ("flower-superlink", "flower-superexec", "flower-supernode")
    found = {name: lab.pids(name) for name in programs}
    assert [len(found[name]) for name in programs] == [1, 1, 3]
    for pid in (pid for pids in found.values() for pid in pids):
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {f"{key}={value}".encode() for key, value in QUIET.items()} <= set(told)


def test_a_run_is_stopped_and_resumed(lab, simulated):
    run = lab.submit(lab.folder / "long.toml")
    lab.wait_for(run, working_in(2))
    lab.call("server", "stop", run)
    assert json.loads(lab.call("server", "status", run, "--json"))["runs"][0]["status"] == "stopped"
    time.sleep(4)  # nobody starts it again
    assert lab.pids("flwr-serverapp") == []
    lab.call("server", "submit", "--resume", run)
    end = lab.wait_for(run, lambda e: e.get("status", "").startswith("finished"))
    assert end["adapter_sha256"] == simulated("long")


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
