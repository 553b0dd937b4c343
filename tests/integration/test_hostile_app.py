"""The coordinator is taken over and sends code of its own: what it reaches at a site.

Flower runs what a SuperLink sends, as the courier. Here it is run for real, through the gateway,
and looks for everything that a site has.
"""

import json
import socket
import subprocess
import time

import pytest

from client.data.sources import find_sites
from server.flower_app import write_app
from server.home import CoordinatorHome
from shared.confinement import is_possible
from shared.processes import environment, program
from tests.integration.lab import Lab, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="needs Linux 5.13 with Landlock"),
]

CLIENT = """
import os, socket, json
import grpc
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

TARGETS = json.loads({targets!r})
app = ClientApp()

def outcome(action):
    try:
        return "reached: " + repr(action())[:600]
    except BaseException as error:
        return type(error).__name__

def ask_agent():
    with grpc.insecure_channel("unix:" + TARGETS["socket"]) as channel:
        call = channel.unary_unary(TARGETS["method"])
        return call(bytes.fromhex(TARGETS["request"]), timeout=20)

def connect(address):
    with socket.create_connection(tuple(address), 3):
        return "connected"

@app.query()
def look(message, context):
    found = {{"code ran": "yes"}}
    for path in TARGETS["files"]:
        found["read " + path] = outcome(lambda: open(path, "rb").read(40))
        found["write " + path] = outcome(lambda: open(path, "ab").write(b"x"))
        found["link " + path] = outcome(lambda: os.link(path, "stolen"))
    for folder in TARGETS["folders"]:
        found["list " + folder] = outcome(lambda: os.listdir(folder))
    pid = TARGETS["agent"]
    for name in ("environ", "mem", "maps", "root/etc/hostname"):
        found["agent's " + name] = outcome(lambda: open(f"/proc/{{pid}}/{{name}}", "rb").read(10))
    found["kill"] = outcome(lambda: os.kill(pid, 9))
    found["connect"] = outcome(lambda: connect(TARGETS["elsewhere"]))
    found["agent"] = outcome(ask_agent)
    return Message(RecordDict({{"found": ConfigRecord(found)}}), reply_to=message)
"""

SERVER = """
import json, time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while not list(grid.get_node_ids()):
        time.sleep(0.2)
    asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(asked, timeout=120))
    found = [
        {{"error": r.error.reason}} if r.has_error() else dict(r.content["found"]) for r in replies
    ]
    with open({out!r}, "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder, ("paired",))
    lab = Lab(folder, clip_folder, [site.name for site in find_sites(federation.data)])
    lab.found(federation.data)
    lab.write_job("job", 1, 2)
    with running(lab):
        lab.finish_well(lab.submit(folder / "job.toml"))  # there is state to find now
        yield lab


def hostile_app(lab, targets, out):
    """Write our own app with code in it, so that it has our name and version."""
    home = CoordinatorHome.at(lab.home)
    folder = lab.folder / "hostile"
    for name, text in (
        ("client/__init__.py", ""),
        ("client/app.py", CLIENT.format(targets=json.dumps(targets))),
        ("server/__init__.py", ""),
        ("server/app.py", SERVER.format(out=str(out))),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_app(home, home.superlink())
    ours = (home.app / "pyproject.toml").read_text()
    theirs = ours.replace('["README.md"]', '["client/*.py", "server/*.py"]')
    assert theirs != ours
    (folder / "pyproject.toml").write_text(theirs)
    return folder, home


def test_code_from_the_coordinator_reaches_no_record(lab):
    site = lab.site(lab.sites[0])
    table = next((lab.folder / "data").rglob("metadata.csv"))
    picture = next(table.parent.glob("*.png"))
    signing = next(site.glob("identity/keys/*/signing.key"))
    secrets = [table, picture, signing, site / "policy.toml", site / "site.toml"]
    secrets += [site / "state" / "audit.jsonl", *sorted((site / "state").rglob("*.safetensors"))]
    before = {path: path.read_bytes() for path in secrets}
    agent = lab.processes[f"agent-{lab.sites[0]}"]
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        targets = {
            "files": [str(path) for path in secrets],
            "folders": [str(f) for f in (table.parent, site, site / "state", site / "identity")],
            "agent": agent.pid,
            "elsewhere": ["127.0.0.1", elsewhere.getsockname()[1]],
            "socket": str(site / "run" / "agent.sock"),
            "method": "/consilia.Agent/Handle",
            "request": b"give me everything".hex(),
        }
        out = lab.folder / "found.json"
        folder, home = hostile_app(lab, targets, out)
        command = [program("flwr"), "run", str(folder), "coordinator"]
        subprocess.run(command, env=environment(home.flower), check=True, timeout=60)
        end = time.monotonic() + 120
        while not out.exists() or not out.read_text():
            assert time.monotonic() < end
            time.sleep(0.5)
    [found] = json.loads(out.read_text())
    assert found.pop("code ran") == "yes"  # so that what follows means something
    agents_answer = found.pop("agent")
    reached = {what: came for what, came in found.items() if came.startswith("reached")}
    assert reached == {}
    assert len(found) == 3 * len(secrets) + 4 + 4 + 2
    # It may ask the agent, which answers nobody but the coordinator's own key.
    assert '"status":"refused"' in agents_answer
    after = {path: path.read_bytes() for path in secrets}
    audit = site / "state" / "audit.jsonl"
    written = after.pop(audit).removeprefix(before.pop(audit))
    assert [json.loads(line)["what"] for line in written.splitlines()] == ["refusal wire"]
    assert after == before
    assert agent.poll() is None


def test_the_site_goes_on_with_its_own_code_afterwards(lab):
    run = lab.submit(lab.folder / "job.toml")
    assert lab.finish_well(run)["adapter_sha256"] == lab.simulated("job")
