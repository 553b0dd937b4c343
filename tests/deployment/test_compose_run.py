"""The compose file for real: a consortium in containers, from nothing to its report.

Needs an engine with docker-compose, and the images: scripts/demo-consortium builds them. The test
starts a project of its own, with volumes of its own, and removes both.
"""

import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = "consilia-test"
IMAGES = ("server", "courier", "agent", "gateway", "postgres")
MARKER = "zzplantedrecordmarkerzz"
STAYING = (
    *("network", "gateway", "superlink", "superexec", "postgres"),
    *("agent-a", "agent-b", "courier-a", "courier-b"),
)
MOST_COURIER_BYTES = 400_000_000

PLANT = """
import csv, pathlib
path = pathlib.Path("/data/metadata.csv")
with path.open(newline="") as file:
    rows = list(csv.DictReader(file))
for row in rows:
    row["text"] = row["text"] and f"{row['text']} MARKER"
with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
"""


def run(*words, seconds=60, check=True):
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT
    )
    if check:
        assert done.returncode == 0, (
            f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done


def docker(*words, **options):
    return run("docker", *words, **options).stdout


def compose(*words, **options):
    v2 = run("docker", "compose", "version", check=False).returncode == 0
    command = ("docker", "compose") if v2 else ("docker-compose",)
    return run(*command, "--project-name", PROJECT, *words, **options)


def container(service):
    return compose("ps", "--quiet", "--all", service).stdout.split()[0]


def inside(service, *words, check=True):
    return run("docker", "exec", container(service), *words, check=check)


@pytest.fixture(scope="module")
def consortium():
    if shutil.which("docker") is None or run("docker", "info", check=False).returncode:
        pytest.skip("no Docker engine answers; set DOCKER_HOST or start one")
    lacking = [
        name
        for name in IMAGES
        if run("docker", "image", "inspect", f"consilia-{name}:local", check=False).returncode
    ]
    if lacking:
        pytest.skip(f"images {', '.join(lacking)} are not built; run scripts/demo-consortium")
    compose("down", "--volumes", "--timeout", "5", seconds=120)
    try:
        begun = time.monotonic()
        site = ("provision", "provision-a", "provision-b")
        compose("up", "--detach", "--no-build", *site, seconds=300)
        for service in site:
            assert docker("wait", container(service), seconds=300).strip() == "0"
        volume = ("--volume", f"{PROJECT}_data-a:/data", "--network", "none")
        docker(
            *("run", "--rm", *volume, "--entrypoint", "python", "consilia-agent:local"),
            *("-c", PLANT.replace("MARKER", MARKER)),
        )
        compose("up", "--detach", "--no-build", seconds=300)
        code = docker("wait", container("demo"), seconds=1800).strip()
        assert code == "0", docker("logs", "--tail", "40", container("demo"))
        print(f"from up to the finished run {time.monotonic() - begun:.0f} s")
        yield
    finally:
        if os.environ.get("CONSILIA_KEEP_CONTAINERS") is None:
            compose("down", "--volumes", "--timeout", "5", seconds=180)


def test_leaves_a_report(consortium, tmp_path):
    docker("cp", f"{container('demo')}:/report/.", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["status"], results["rounds"]) == ("finished", 3)
    assert results["engine"] == "deployment"
    assert sorted(results["sites"]) == ["site-a", "site-b"]
    for site in results["sites"].values():
        assert site["metrics"]["shared"]["auroc"]["n"] >= 20
        assert [cell["state"] for cell in site["participation"]] == ["in"] * 3
    page = (tmp_path / "report.html").read_text()
    assert results["adapter_sha256"] in page
    assert MARKER not in page


@pytest.mark.parametrize("service", STAYING)
def test_is_well(consortium, service):
    end = time.monotonic() + 90
    while (
        state := docker("inspect", "--format", "{{.State.Health.Status}}", container(service))
    ).strip() != "healthy":
        assert time.monotonic() < end, state
        time.sleep(2)
    assert docker("inspect", "--format", "{{.RestartCount}}", container(service)).strip() == "0"


@pytest.mark.parametrize("service", ["agent-a", "agent-b", "postgres"])
def test_has_no_network_but_loopback(consortium, service):
    table = inside(service, "cat", "/proc/net/dev").stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in table] == ["lo"]
    assert inside(service, "cat", "/proc/net/route").stdout.count("\n") == 1  # the heading


@pytest.mark.parametrize("service", STAYING)
def test_processes_are_nobodys(consortium, service):
    code = (
        "import pathlib\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*/status'):\n"
        "    lines = dict(l.split(':', 1) for l in p.read_text().splitlines() if ':' in l)\n"
        "    print(*lines['Uid'].split(), lines['CapEff'].strip(), lines['CapBnd'].strip(),\n"
        "          lines['NoNewPrivs'].strip(), lines['Seccomp'].strip())\n"
    )
    for line in inside(service, "python3", "-c", code).stdout.splitlines():
        *users, effective, bounding, privileges, filtered = line.split()
        assert users == ["10001"] * 4
        assert int(effective, 16) == int(bounding, 16) == 0
        assert (privileges, filtered) == ("1", "2")


@pytest.mark.parametrize("service", STAYING)
def test_the_root_cannot_be_written(consortium, service):
    code = "import os, sys; sys.exit(0 if os.statvfs('/').f_flag & os.ST_RDONLY else 1)"
    inside(service, "python3", "-c", code)
    assert inside(service, "touch", "/opt/written", check=False).returncode != 0


def test_the_agent_cannot_write_its_records(consortium):
    failed = inside("agent-a", "touch", "/data/written", check=False)
    assert failed.returncode != 0
    assert "Read-only file system" in failed.stderr


def connects(service, host, port):
    code = f"import socket; socket.create_connection(({host!r}, {port}), timeout=4)"
    return inside(service, "python3", "-c", code, check=False).returncode == 0


def test_a_courier_reaches_the_gateway_and_nothing_else(consortium):
    assert connects("courier-a", "gateway", 8443)
    assert not connects("courier-a", "gateway", 8000)  # the SuperLink is on loopback
    assert not connects("courier-a", "1.1.1.1", 443)
    assert not connects("courier-a", "courier-b", 8443)
    assert connects("gateway", "localhost", 8000)  # so it is there


def exported(service, folder):
    """All bytes of a container's own files, volumes apart."""
    path = folder / f"{service}.tar"
    docker("export", "--output", str(path), container(service), seconds=300)
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read()


def holding(service, folders):
    """Files in a container's volumes that hold the marker."""
    words = ("grep", "-rlaF", MARKER, *folders)
    found = inside(service, *words, check=False)
    assert found.returncode in (0, 1), found.stderr
    return found.stdout.split()


def test_the_planted_record_is_at_its_site_only(consortium, tmp_path):
    assert holding("agent-a", ["/data"])  # it is there to be found
    assert not holding("courier-a", ["/site", "/run/consilia"])
    assert not holding("superexec", ["/coordinator"])
    assert not holding("postgres", ["/var/lib/postgresql"])
    assert not [n for n, content in exported("courier-a", tmp_path) if MARKER.encode() in content]
    for service in STAYING:
        assert MARKER not in docker("logs", container(service))


def test_a_courier_holds_the_nodes_key_and_no_other(consortium):
    keys = inside("courier-a", "find", "/site/identity", "-name", "*.key").stdout.split()
    assert [Path(key).name for key in keys] == ["node.key"]
    keys = inside("gateway", "find", "/gateway", "-name", "*.key").stdout.split()
    assert keys == ["/gateway/keys/server.key"]


def test_the_history_is_in_postgresql(consortium):
    code = (
        "from server.history import RunHistory\n"
        "import os\n"
        "with RunHistory(os.environ['CONSILIA_HISTORY']) as history:\n"
        "    print(*(f'{run.name} {run.status} {run.rounds}' for run in history.runs()))\n"
    )
    said = inside("superexec", "python", "-c", code).stdout.split()
    assert said == ["demonstration-1", "finished", "3"]
    assert inside("superexec", "ls", "/coordinator/history.sqlite", check=False).returncode != 0


def test_the_couriers_image_is_small_and_has_no_torch(consortium):
    for name in IMAGES:
        size = int(docker("image", "inspect", "--format", "{{.Size}}", f"consilia-{name}:local"))
        print(f"consilia-{name} {size / 1e6:.0f} MB")
        assert name != "courier" or size < MOST_COURIER_BYTES
    for service in ("courier-a", "superlink"):
        for module in ("torch", "transformers", "pandas", "pip", "uv"):
            found = inside(service, "python", "-c", f"import {module}", check=False)
            assert "ModuleNotFoundError" in found.stderr


def test_a_second_up_finds_everything_done(consortium):
    compose("up", "--detach", "--no-build", seconds=300)
    assert docker("wait", container("demo"), seconds=120).strip() == "0"
    assert "the report is there already" in docker("logs", "--tail", "1", container("demo"))
