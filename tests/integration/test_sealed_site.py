"""A real agent with a sealed state: nothing private is readable on its disk, in its logs, or sent.

Two agents, each a process of its own, finish a run together. One seals its state, the other does
not and shows that the search finds what it looks for. Markers stand in reports, file names and
patient ids; further needles are values of the adapters that a site keeps, pixels, and the keys.
"""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from client.agent import load_records
from client.data.sources import find_sites
from client.sealed_state import opened, private_files
from client.service import SocketChannel
from client.settings import load_agent
from client.state import SiteState, read_tensors
from client.vault import Vault, sealed_file
from server.app import run_job
from server.checkpoint import RunStore
from server.history import RunHistory
from shared.adapter import factor_of
from shared.config import JobConfig
from shared.messages import decode_reply
from tests.integration.test_privacy_markers import WORDS, Tapped, plant

ROOT = Path(__file__).parents[2]
SEALED, CLEAR = "a-paired", "b-unpaired"
OPEN = {
    "lock": "empty",
    "keyring.lock": "empty",
    "privacy/lock": "empty",
    "keyring.json": "wrapped keys and names of runs",
    "audit.jsonl": "names of runs, digests, reasons",
    "asked.json": "names of runs, numbers",
    "data.json": "names of runs, digests",
    "privacy/anchor.json": "a number, a digest",
}
"""What may be in the clear in a sealed state; whatever else a site keeps must be sealed."""
SITE = """
name = "{name}"
state = "state"
base = "{base}"
device = "cpu"
answer_seconds = 5
[data]
table = "{table}"
"""
POLICY = """
purpose = "a test of files at rest"
expires = "never"
coordinators = ["any"]
base_sha256 = ["any"]
requests = ["any"]
rules = ["any"]
personalization = ["any"]
targets = ["any"]
metrics = ["auroc", "accuracy", "ece", "r1", "r5", "r10"]
max_change = 1e9
minimum_patients = 1
minimum_cohort = 1
minimum_count = 1
exact = true
"""
AGENT = """
import sys
import client.work as work
from simulations.cli import main

real, calls, fails = work.train_shared, iter(range(100)), sys.argv[2] == "fails"

def sometimes(encoder, tasks, job):
    if fails and next(calls) == 1:  # in the second round, with a report in the error
        raise ValueError("zebraerror " + tasks[0].data.splits["train"].texts[0])
    return real(encoder, tasks, job)

work.train_shared = sometimes
sys.argv = ["consilia", "client", "agent", "--config", sys.argv[1]]
main()
"""


def raise_core_limit():
    """Let a process of the test leave a core, if it is not kept from it."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def start(home, words):
    with (home / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", AGENT, str(home / "site.toml"), words],
            cwd=home,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            preexec_fn=raise_core_limit,  # noqa: PLW1509 - the test has no other threads yet
        )


def wait_for(home, process):
    end = time.monotonic() + 60
    while "ready" not in (home / "agent.log").read_text():
        assert process.poll() is None, (home / "agent.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ran(make_federation, tmp_path_factory, integration_job):
    folder = tmp_path_factory.mktemp("s")
    federation = make_federation(folder, ("paired", "unpaired"))
    tree = federation.job.model_dump(mode="json", exclude={"aggregate", "personalize"})
    tree |= {"aggregate": {"rule": "fedsa", "quorum": 1}, "rounds": 3}
    job = JobConfig.model_validate(tree)
    homes = {}
    for source in find_sites(federation.data):
        home = homes[source.name] = folder / source.name[0]
        home.mkdir()
        plant(source.table.parent)
        text = SITE.format(name=source.name, base=job.model.base, table=source.table)
        if source.name == SEALED:
            text += '[sealing]\nkey_file = "../keys/site.key"\n'
        (home / "site.toml").write_text(text)
        (home / "policy.toml").write_text(POLICY)
    (folder / "keys").mkdir()
    sealing = [sys.executable, "-m", "simulations.cli", "client", "seal", "--site"]
    said = subprocess.run(
        [*sealing, homes[SEALED]], capture_output=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    agents = {
        name: start(home, "fails" if name == SEALED else "works") for name, home in homes.items()
    }
    try:
        for name, home in homes.items():
            wait_for(home, agents[name])
        channels = {
            name: SocketChannel(home / "run" / "agent.sock") for name, home in homes.items()
        }
        grid, run = Tapped(channels), folder / "run"
        base = federation.encoder.base_sha256
        with (
            RunStore.create(run, job, base_sha256=base) as store,
            RunHistory(f"sqlite:///{run / 'history.sqlite'}") as history,
            grid,
        ):
            outcome = run_job(grid, job, store, history, federation.encoder.layout, base)
        yield {
            "homes": homes,
            "run": run,
            "outcome": outcome,
            "sent": [*grid.up, *grid.down],
            "up": grid.up,
            "said": said.stdout + said.stderr,
            "agents": agents,
            "encoder": federation.encoder,
        }
    finally:
        for process in agents.values():
            process.kill()
            process.wait()


def needles_in(content, factor):
    """Eight values in a row of each factor of a kind, none of them nought."""
    found = []
    for name, array in read_tensors(content)[0].items():
        if factor_of(name) != factor:
            continue
        flat = np.ascontiguousarray(array).ravel()
        middle = len(flat) // 2
        if np.count_nonzero(flat[middle : middle + 8]) == 8:
            found.append(flat[middle : middle + 8].tobytes())
    return found


def own_needles(home):
    """Values of B of every adapter that a site keeps for itself; all of them share A."""
    settings = load_agent(home / "site.toml")
    keeping = opened(settings).site.keeping
    files = [*home.glob("state/personal/*"), *home.glob("state/own-factor/*/*")]
    found = [needle for path in files for needle in needles_in(keeping.read(path), "B")]
    assert len(found) > 10
    return found


def pixel_needles(ran, home):
    """Pixels of the site's prepared pictures: the richest stretch of each of some."""
    data = load_records(load_agent(home / "site.toml").site, ran["encoder"])
    flat = np.asarray(data.splits["train"].pixels[:8]).reshape(8, -1)
    stretches = [max(row.reshape(-1, 32), key=lambda s: len(set(s.tolist()))) for row in flat]
    return [stretch.tobytes() for stretch in stretches if len(set(stretch.tolist())) > 8]


def keys_of(home):
    """The site's key and its data keys, raw and in hexadecimal digits."""
    vault = opened(load_agent(home / "site.toml")).site.keeping
    assert isinstance(vault, Vault)
    keys = [vault._wrapping, *(vault._unwrapped(run) for run in vault._ring.keys)]
    return [form for key in keys for form in (key, key.hex().encode())]


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held_needles(ran, home):
    state = SiteState(home / "state", keeping=opened(load_agent(home / "site.toml")).site.keeping)
    return needles_in(state.keeping.read(home / "state" / "held" / "A.safetensors"), "A")


def hits(places, needles):
    return {place for place, content in places.items() for n in needles if n in content}


def test_the_run_did_what_it_should(ran):
    assert len(ran["outcome"].evaluations) == 2
    replies = [decode_reply(body)[0] for body in ran["up"]]
    assert [reply.reason for reply in replies if reply.reason] == ["internal"]
    for home in ran["homes"].values():
        state = {path.relative_to(home / "state").as_posix().split("/")[0]
                 for path in (home / "state").rglob("*") if path.is_file()}  # fmt: skip
        assert {"answer", "held", "personal", "own-factor", "audit.jsonl"} <= state


def test_nothing_private_is_on_the_disk_of_a_sealed_site(ran):
    home = ran["homes"][SEALED]
    places = files_below(home)
    needles = [word.encode() for word in WORDS]
    needles += own_needles(home) + held_needles(ran, home) + pixel_needles(ran, home)
    assert hits(places, needles + keys_of(home)) == set()
    state = home / "state"
    clear = {p.relative_to(state).as_posix() for p in files_below(state) if not sealed_file(p)}
    assert clear <= OPEN.keys()
    assert private_files(load_agent(home / "site.toml")).clear == ()


def test_the_search_finds_all_of_it_where_nothing_is_sealed(ran):
    home = ran["homes"][CLEAR]
    places = files_below(home / "state")
    for needles in (own_needles(home), held_needles(ran, home), pixel_needles(ran, home)):
        for needle in needles:
            assert hits(places, [needle]), "a needle that is nowhere shows nothing"
    table = load_agent(home / "site.toml").site.source.table.read_bytes()
    assert all(word.encode() in table for word in WORDS[:3])


def test_no_key_and_no_value_is_sent_or_said(ran):
    homes = ran["homes"]
    needles = [word.encode() for word in WORDS] + keys_of(homes[SEALED])
    needles += [needle for home in homes.values() for needle in own_needles(home)]
    needles += [needle for home in homes.values() for needle in pixel_needles(ran, home)]
    places = {f"sent {number}": body for number, body in enumerate(ran["sent"])}
    places |= files_below(ran["run"])
    places |= {str(home): (home / "agent.log").read_bytes() for home in homes.values()}
    places["said"] = ran["said"]
    assert b"request refused: internal (ValueError" in places[str(homes[SEALED])]
    assert hits(places, needles) == set()


def test_a_site_goes_on_with_what_it_sealed(ran):
    """Evaluated with its personal adapter, which was read from the sealed file."""
    assert "personal" in ran["outcome"].evaluations[SEALED].metrics
    settings = opened(load_agent(ran["homes"][SEALED] / "site.toml"))
    state = SiteState(settings.site.state, keeping=settings.site.keeping)
    assert state.load_personal(ran["outcome"].shared.sha256()) is not None


def test_no_memory_of_an_agent_reaches_the_disk(ran):
    """It may not leave a core, whatever limit it was started with; the last test of its agent."""
    home, process = ran["homes"][SEALED], ran["agents"][SEALED]
    limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    (cores,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    assert cores == ["0", "0"]
    process.send_signal(signal.SIGABRT)
    assert process.wait(30) == -signal.SIGABRT
    assert not [path for path in home.rglob("*core*") if path.is_file()]


def test_a_process_that_is_not_kept_from_it_would_leave_a_core(tmp_path):
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")) or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine writes no core into the process's own folder")
    code = "import os; from shared.processes import forbid_dumps; {}; os.abort()"
    left = {}
    for name, before in (("free", "pass"), ("kept", "forbid_dumps()")):
        (tmp_path / name).mkdir()
        subprocess.run(
            [sys.executable, "-c", code.format(before)],
            cwd=tmp_path / name,
            env={"PYTHONPATH": str(ROOT)},
            preexec_fn=raise_core_limit,
            check=False,
        )
        left[name] = len(list((tmp_path / name).iterdir()))
    assert left == {"free": 1, "kept": 0}
