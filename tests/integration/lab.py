"""A consortium of real processes on loopback, for tests: every command a process of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.data.sources import find_sites
from server.history import RunHistory
from server.records import RoundRecord
from shared.processes import die_with_parent, free_port

JOB = """
name = "real"
seed = 3
rounds = {rounds}
[data]
sites = {sites}
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
answer_seconds = {answer_seconds}
[data]
table = "{table}"
"""
POLICY = """
purpose = "a test of the whole arrangement"
expires = "never"
coordinators = ["any"]
base_sha256 = ["any"]
requests = ["any"]
rules = ["altfold"]
personalization = ["duet"]
targets = ["attention", "mlp", "projection"]
metrics = ["auroc", "accuracy", "ece", "r1", "r5", "r10"]
max_change = 1e9
minimum_patients = 1
minimum_cohort = 1
minimum_count = 1
exact = true
"""

Event = Mapping[str, Any]


def working_in(number: int, site: str | None = None) -> Callable[[Event], bool]:
    """Wanted: a site that is at work in a round."""

    def wanted(event: Event) -> bool:
        at = (event["kind"], event.get("round")) == ("site-working", number)
        return at and site in (None, event["site"])

    return wanted


def consilia(*arguments: object) -> list[str]:
    """Return the command line of a command."""
    return [sys.executable, "-m", "simulations.cli", *map(str, arguments)]


@dataclass
class Lab:
    """A coordinator and sites, each command a process of its own.

    Attributes:
        folder: Holds everything.
        base: The base's folder.
        sites: Names.
        environment: Further variables for all processes.
        secure: Whether there is a consortium, with gateway, TLS, node keys and signatures.
        hosts: Names of the gateway.
        through: What a site's courier connects to instead of the gateway, ``host:port`` by site.
        inside: Words before the command of a site's courier: a network that it is to be in.
        answer_seconds: So long an agent may take before it answers ``working``; short, so that
            tests see it at work, and every such answer costs a process of Flower's.
        prefix: Words before every command's own, the last followed by ``NAME.trace``; none if
            empty.
        port: Of the SuperLink.
        gateway_port: Of the gateway.
        processes: By name: ``coordinator``, ``agent-SITE``, ``courier-SITE``.
    """

    folder: Path
    base: Path
    sites: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    secure: bool = True
    hosts: tuple[str, ...] = ("localhost",)
    through: dict[str, str] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)
    answer_seconds: float = 0.5
    prefix: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Return the coordinator's folder."""
        return self.folder / "co"

    def site(self, name: str) -> Path:
        """Return a site's folder."""
        return self.folder / "sites" / name

    def write_job(self, name: str, rounds: int, steps: int) -> Path:
        """Write a job's file."""
        sites = json.dumps(self.sites)
        text = JOB.format(base=self.base, rounds=rounds, steps=steps, sites=sites)
        path = self.folder / f"{name}.toml"
        path.write_text(text.replace('"real"', f'"real-{name}"'))
        return path

    def found(self, data: Path) -> None:
        """Make the sites' folders, and the consortium with its kits."""
        for source in find_sites(data):
            place = self.site(source.name)
            place.mkdir(parents=True)
            text = SITE.format(
                name=source.name,
                base=self.base,
                table=source.table,
                answer_seconds=self.answer_seconds,
            )
            (place / "site.toml").write_text(text)
            (place / "policy.toml").write_text(POLICY)
        if self.secure:
            hosts = [word for host in self.hosts for word in ("--host", host)]
            where = (*hosts, "--port", self.gateway_port)
            made = self.json("server", "init", self.home, "--name", "lab", *where, "--json")
            for site in self.sites:
                self.admit(site, made["fingerprint"])

    def admit(self, site: str, fingerprint: str) -> None:
        """Make a site's keys, have it admitted, and join."""
        part = self.json("client", "init", self.site(site), "--name", site, "--json")
        read_out = ("--fingerprint", part["fingerprint"], "--home", self.home, "--json")
        kit = self.json("server", "admit", part["file"], *read_out)["kit"]
        self.json(
            *("client", "join", kit, "--site", self.site(site), "--json"),
            *("--fingerprint", fingerprint),
        )

    def start(self, name: str, *arguments: object, inside: Sequence[str] = ()) -> None:
        """Start a command as a process, as in an institution: nobody set anything for us."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "CONSILIA_"))}
        before = [*self.prefix, str(self.folder / f"{name}.trace")] if self.prefix else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*inside, *before, *consilia(*arguments)],
                stdout=log,
                stderr=log,
                env={**keep, **self.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - a killed test leaves nothing behind
            )

    def start_coordinator(self) -> None:
        """Start ``server start``."""
        self.start("coordinator", "server", "start", "--home", self.home, "--port", self.port)

    def start_agent(self, site: str) -> None:
        """Start ``client agent``."""
        self.start(f"agent-{site}", "client", "agent", "--config", self.site(site) / "site.toml")

    def start_courier(self, site: str) -> None:
        """Start ``client courier``."""
        there = f"localhost:{self.gateway_port if self.secure else self.port}"
        where = ("--site", self.site(site), "--superlink", self.through.get(site, there))
        command = ("client", "courier", *where, *self._trust())
        self.start(f"courier-{site}", *command, inside=self.inside)

    def _trust(self) -> Sequence[str]:
        return () if self.secure else ("--insecure",)

    def start_again(self, name: str) -> None:
        """Start a process that was killed, as a machine's own supervisor would."""
        kind, _, site = name.partition("-")
        if kind == "coordinator":
            self.start_coordinator()
        else:
            {"agent": self.start_agent, "courier": self.start_courier}[kind](site)

    def start_all(self) -> None:
        """Start everything, and wait until the coordinator is ready."""
        self.start_coordinator()
        for site in self.sites:
            self.start_agent(site)
            self.start_courier(site)
        log, end = self.folder / "coordinator.log", time.monotonic() + 300
        while "ready" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """Kill a process of ``processes``."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(10)

    def call(self, *arguments: object) -> str:
        """Run a command to its end; return what it printed."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "CONSILIA_"))}
        done = subprocess.run(
            consilia(*arguments),
            capture_output=True,
            check=False,
            text=True,
            timeout=900,  # against a command that hangs; a crowded machine may need minutes
            env={**keep, **self.environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: object) -> Any:
        """Run a command that prints JSON; return it."""
        return json.loads(self.call(*arguments))

    def server(self, *arguments: object) -> str:
        """Run a command of the coordinator's."""
        return self.call("server", *arguments, "--home", self.home)

    def submit(self, job: Path) -> str:
        """Submit a job; return the run's name."""
        found = re.search(r"Run (\S+)", self.server("submit", job))
        assert found
        return found[1]

    def events(self, run: str) -> list[Event]:
        """Return the events of a run so far."""
        path = self.home / "runs" / run / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, run: str, wanted: Callable[[Event], bool], seconds: float = 150) -> Event:
        """Wait for an event of a run; a process that died in between shows in the message."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [event for event in self.events(run) if wanted(event)]
            if found:
                return found[-1]
            time.sleep(0.1)
        raise AssertionError(f"not seen within {seconds} s: {self.events(run)[-5:]}")

    def finish(self, run: str, seconds: float = 150) -> Event:
        """Wait for a run's end."""
        return self.wait_for(run, lambda event: event["kind"] == "run-finished", seconds)

    def finish_well(self, run: str, seconds: float = 240) -> Event:
        """Wait for a run's good end, whatever ended before it."""
        return self.wait_for(
            run, lambda e: str(e.get("status", "")).startswith("finished"), seconds
        )

    def rounds(self, run: str) -> list[RoundRecord]:
        """Return the committed rounds of a run."""
        url = self.environment.get("CONSILIA_HISTORY")
        where = RunHistory(url) if url else RunHistory.at(self.home / "history.sqlite")
        with where as history:
            return history.committed_rounds(run)

    def pids(self, program: str, below: Path | None = None) -> list[int]:
        """Return the processes of the lab that run a program, the oldest first.

        Args:
            program: Such as ``flower-supernode`` or ``python -m server.watch``.
            below: Only those that work in this folder of the lab.
        """
        found = []
        place = str(below or self.folder).encode() + b"/"
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes()
                mine = place in (process / "environ").read_bytes() or place in line
                if f"/{program}".encode() in line.replace(b"\0", b" ") and mine:
                    found.append(int(process.name))
        return sorted(found)

    def stop(self) -> None:
        """End everything, politely first."""
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def simulated(self, name: str) -> str:
        """Return the adapter's digest of a job under ``consilia simulate``."""
        out = self.folder / "simulated" / name
        if not out.exists():
            place = ("--data", self.folder / "data", "--out", self.folder / "sim")
            done = self.json("simulate", self.folder / f"{name}.toml", "--json", *place)
            out.parent.mkdir(exist_ok=True)
            out.write_text(done["adapter_sha256"])
        return out.read_text()


@contextmanager
def running(lab: Lab) -> Iterator[Lab]:
    """Start a lab that was founded; end it whatever happens."""
    try:
        lab.start_all()
        yield lab
    finally:
        lab.stop()
