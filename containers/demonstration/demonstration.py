"""The demonstration consortium of docker-compose.yml, founded by the commands that people use.

demonstration.py coordinator SITE ...   makes the consortium, admits the sites, writes their kits
demonstration.py site SITE              makes a site's records, keys, settings and policy, and joins
demonstration.py run                    submits the job, waits for its end, leaves the report

Each part runs in a container of its own and sees its own folders only. What coordinator and site
hand to one another, and read out over the telephone, lies in ``/exchange``; no private key does.
Every step that is done already is left as it is.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXCHANGE = Path("/exchange")
COORDINATOR, GATEWAY, REPORT = Path("/coordinator"), Path("/gateway"), Path("/report")
SITE, COURIER, DATA = Path("/site"), Path("/courier"), Path("/data")
JOB = Path(__file__).with_name("job.toml")
HOST, PORT = "gateway", 8443
PATIENCE_SECONDS = 180.0
RUN_SECONDS = 1800.0
LOOK_SECONDS = 2.0

SETTINGS = """\
name = "{name}"
state = "state"
socket = "/run/consilia/agent.sock"

[data]
table = "/data/metadata.csv"
"""

POLICY = """\
purpose = "demonstration on synthetic records"
expires = "never"
coordinators = ["{coordinator}"]
base_sha256 = ["{base}"]
requests = ["any"]
rules = ["fedavg", "altfold"]
personalization = ["duet", "none"]
targets = ["attention", "mlp", "projection"]
metrics = [
    "auroc", "accuracy", "ece", "r1", "r5", "r10",
    "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10",
]
minimum_cohort = 2
minimum_patients = 20
minimum_count = 5
"""


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def consilia(*words: object) -> str:
    """Run a command; return what it printed, or end as it ended."""
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [sys.executable, "-m", "simulations.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def hand_over(name: str, content: str) -> None:
    """Lay a file into the exchange, whole."""
    draft = EXCHANGE / f".{name}"
    draft.write_text(content, encoding="utf-8")
    draft.rename(EXCHANGE / name)


def receive(name: str) -> str:
    """Wait for a file in the exchange; return its content."""
    what = f"{name} from the other side"
    return wait(what, lambda: _read(EXCHANGE / name), PATIENCE_SECONDS, 0.2)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def wait(what: str, look: Callable[[], str | None], seconds: float, pause: float) -> str:
    """Look until there is something to see, with pauses in seconds; return it."""
    end = time.monotonic() + seconds
    while (seen := look()) is None:
        if time.monotonic() > end:
            sys.exit(f"waited {seconds:g} s for {what}; see what the other containers say")
        time.sleep(pause)
    return seen


def coordinator(sites: list[str]) -> None:
    """Make the consortium, admit the sites and write their kits."""
    if (EXCHANGE / f"{sites[-1]}.kit.json").exists():
        say("the consortium is there already")
        return
    hand_over("begun", str(time.time()))
    place = ("--host", HOST, "--host", "localhost", "--port", PORT)
    made = json.loads(
        consilia("server", "init", COORDINATOR, "--name", "demonstration", *place, "--json")
    )
    say(f"consortium demonstration, fingerprint {made['fingerprint']}")
    _gateway_folder()
    hand_over("fingerprint", made["fingerprint"])
    for site in sites:
        read_out = json.loads(receive(f"{site}.fingerprint.json"))
        file = EXCHANGE / f"{site}.site.json"
        consilia(
            *("server", "admit", file, "--fingerprint", read_out["fingerprint"]),
            *("--home", COORDINATOR),
        )
        say(f"admitted {site}")
    for site in sites:  # once all are in the roster: a site counts who takes part
        kit = Path("/tmp") / f"{site}.kit.json"  # noqa: S108 - the container's own
        consilia("server", "kit", site, "--home", COORDINATOR, "--out", kit)
        hand_over(kit.name, kit.read_text(encoding="utf-8"))


def _gateway_folder() -> None:
    """Give the gateway what it needs of the consortium's folder: no key but the server's."""
    consortium = COORDINATOR / "consortium"
    for name in ("certificates/ca.crt", "certificates/server.crt", "keys/server.key"):
        (GATEWAY / name).parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copy2(consortium / name, GATEWAY / name)
    (GATEWAY / "gateway" / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
    text = (consortium / "gateway" / "nginx.conf").read_text(encoding="utf-8")
    # What is called goes to the container's log, which is turned over.
    text = text.replace("access_log tmp/access.log", "access_log /dev/stdout")
    (GATEWAY / "gateway" / "nginx.conf").write_text(text, encoding="utf-8")


def site(name: str) -> None:
    """Make a site's records, keys, settings and policy, and join the consortium."""
    if (SITE / "policy.toml").exists():
        say(f"{name} is there already")
        return
    _records(name)
    if not (SITE / "identity").exists():
        part = json.loads(consilia("client", "init", SITE, "--name", name, "--json"))
        hand_over(f"{name}.site.json", Path(part["file"]).read_text(encoding="utf-8"))
        hand_over(f"{name}.fingerprint.json", json.dumps(part))
    base = _layout()
    kit = EXCHANGE / f"{name}.kit.json"
    receive(kit.name)
    fingerprint = receive("fingerprint")
    say(consilia("client", "join", kit, "--site", SITE, "--fingerprint", fingerprint).strip())
    _courier_folder()
    (SITE / "site.toml").write_text(SETTINGS.format(name=name), encoding="utf-8")
    key = json.loads(_read(kit) or "{}")["signer"]
    (SITE / "policy.toml").write_text(POLICY.format(coordinator=key, base=base), encoding="utf-8")


def _records(name: str) -> None:
    """Write a synthetic hospital: the first two of the generator's, one for each site."""
    drafts = Path("/tmp/phantoms")  # noqa: S108 - the container's own
    consilia("data", "phantoms", "--out", drafts, "--sites", 2)
    hospitals = sorted(drafts.iterdir())
    chosen = hospitals[ord(name[-1]) - ord("a")]
    for item in chosen.iterdir():
        target = DATA / item.name
        if item.is_dir():
            shutil.copytree(item, target, dirs_exist_ok=True)
        else:
            shutil.copy2(item, target)
    say(f"{name}: records of the synthetic hospital {chosen.name}")


def _layout() -> str:
    """Write the base's layout for the coordinator, which has no torch; return the base's digest."""
    path = Path("/tmp/layout.json")  # noqa: S108 - the container's own
    command = [sys.executable, "-m", "shared.model.describe", str(JOB), str(path)]
    subprocess.run(command, check=True)  # noqa: S603 - our own module
    content = path.read_text(encoding="utf-8")
    hand_over("layout.json", content)
    return str(json.loads(content)["base_sha256"])


def _courier_folder() -> None:
    """Give the courier what it needs of the site's identity: the node's key, and no other."""
    identity, mine = SITE / "identity", COURIER / "identity"
    keys = next((identity / "keys").iterdir())
    (mine / "keys" / keys.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in ("kit.json", "ca.crt", f"keys/{keys.name}/site.json", f"keys/{keys.name}/node.key"):
        shutil.copy2(identity / file, mine / file)


def run() -> None:
    """Submit the job, wait for its end, and leave the report."""
    if (REPORT / "report.html").exists():
        say("the report is there already")
        return
    home = ("--home", COORDINATOR)
    layout = EXCHANGE / "layout.json"
    said = consilia("server", "submit", JOB, "--layout", layout, *home).splitlines()
    name = said[0].removeprefix("Run ")
    say(said[0])
    last: list[object] = []

    def ended() -> str | None:
        now = _status(name)
        seen = [now["status"], now["rounds"], now["phase"]]
        if seen != last:
            say(
                f"{now['status']}, round {now['rounds']} of {now['rounds_planned']}, {now['phase']}"
            )
            last[:] = seen
        return None if now["status"] in ("submitted", "running") else str(now["status"])

    status = wait("the run's end", ended, RUN_SECONDS, LOOK_SECONDS)
    path = COORDINATOR / "runs" / name
    say(consilia("server", "status", name, *home))
    consilia("report", path)
    for file in ("results.json", "report.html"):
        shutil.copy2(path / file, REPORT / file)
    now = _status(name)
    seconds = time.time() - float((EXCHANGE / "begun").read_text(encoding="utf-8"))
    say(
        f"{status} {seconds:.0f} s after the first container began; adapter {now['adapter_sha256']}"
    )
    say("report.html and results.json are in the volume `report`: scripts/demo-consortium copies")
    say("them to ./demo, as does: docker cp $(docker compose ps -aq demo):/report demo")
    sys.exit(0 if status == "finished" else 1)


def _status(name: str) -> dict[str, Any]:
    answer = json.loads(consilia("server", "status", name, "--home", COORDINATOR, "--json"))
    found: dict[str, Any] = answer["runs"][0]
    return found


def main(part: str, *names: str) -> None:
    """Carry out one part."""
    os.umask(0o077)
    if part == "coordinator":
        coordinator(list(names))
    elif part == "site":
        site(names[0])
    else:
        run()


if __name__ == "__main__":
    main(*sys.argv[1:])
