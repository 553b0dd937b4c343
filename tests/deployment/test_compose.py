"""The compose files and the Dockerfile, line by line; test_compose_run.py starts them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from client.policy import SitePolicy
from shared.config import load_job

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
ONCE = {"provision", "provision-a", "provision-b", "demo"}
STAYING = SERVICES.keys() - ONCE
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DEMONSTRATION = ROOT / "containers" / "demonstration"


def mounts(service):
    """Where what is mounted, and whether it is read-only."""
    found = {}
    for line in SERVICES[service].get("volumes", []):
        source, target, *mode = line.split(":")
        found[target] = (source, mode == ["ro"])
    return found


def volumes(service):
    return {source for source, _ in mounts(service).values() if not source.startswith(".")}


@pytest.mark.parametrize("service", sorted(SERVICES))
class TestEveryContainer:
    def test_is_no_root_and_cannot_become_it(self, service):
        settings = SERVICES[service]
        assert settings["user"] == "10001:10001"
        assert settings["cap_drop"] == ["ALL"]
        assert settings["security_opt"] == ["no-new-privileges:true"]
        for key in ("privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"):
            assert key not in settings

    def test_cannot_write_its_root(self, service):
        settings = SERVICES[service]
        assert settings["read_only"] is True
        for place in settings["tmpfs"]:
            assert {"noexec", "nosuid", "nodev"} <= set(place.partition(":")[2].split(","))
            assert "size=" in place

    def test_is_bounded(self, service):
        settings = SERVICES[service]
        assert re.fullmatch(r"\d+[mg]", settings["mem_limit"])
        assert 0 < settings["pids_limit"] <= 256
        assert settings["logging"]["options"]["max-size"]

    def test_publishes_no_port(self, service):
        assert "ports" not in SERVICES[service]

    def test_mounts_nothing_of_the_host_but_the_demonstration(self, service):
        for source, read_only in mounts(service).values():
            if source.startswith((".", "/", "~")):
                assert (source, read_only) == ("./containers/demonstration", True)


@pytest.mark.parametrize("service", sorted(STAYING))
def test_a_service_that_stays_comes_back_and_says_how_it_is(service):
    assert SERVICES[service]["restart"] == "unless-stopped"
    assert SERVICES[service]["init"] is True  # whose parent died is taken care of
    check = SERVICES[service]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert check["interval"]
    assert check["timeout"]


@pytest.mark.parametrize("service", sorted(ONCE))
def test_what_is_done_once_is_not_started_again(service):
    assert SERVICES[service]["restart"] == "no"


@pytest.mark.parametrize("site", ["a", "b"])
class TestSite:
    def test_the_agent_has_no_network(self, site):
        assert SERVICES[f"agent-{site}"]["network_mode"] == "none"
        assert "networks" not in SERVICES[f"agent-{site}"]

    def test_the_courier_has_one_network_that_leads_nowhere_else(self, site):
        assert SERVICES[f"courier-{site}"]["networks"] == [f"site-{site}"]
        assert COMPOSE["networks"][f"site-{site}"] == {"internal": True}

    def test_they_share_the_socket_and_nothing_else(self, site):
        agent, courier = volumes(f"agent-{site}"), volumes(f"courier-{site}")
        assert agent & courier == {f"socket-{site}"}
        assert mounts(f"agent-{site}")["/run/consilia"][0] == f"socket-{site}"
        assert mounts(f"courier-{site}")["/run/consilia"][0] == f"socket-{site}"

    def test_records_are_read_only_and_the_agents_alone(self, site):
        assert mounts(f"agent-{site}")["/data"] == (f"data-{site}", True)
        holders = {name for name in SERVICES if f"data-{site}" in volumes(name)}
        assert holders == {f"agent-{site}", f"provision-{site}"}

    def test_no_other_container_sees_its_folders(self, site):
        own = {f"{kind}-{site}" for kind in ("agent", "courier", "data", "socket")}
        others = SERVICES.keys() - {f"agent-{site}", f"courier-{site}", f"provision-{site}"}
        for name in others:
            assert not own & volumes(name)


class TestCoordinator:
    def test_only_the_gateway_is_reached_from_a_site(self):
        inside = {
            name for name in SERVICES if SERVICES[name].get("network_mode") == "service:network"
        }
        assert inside == {"gateway", "superlink", "superexec", "demo"}
        on_a_network = {name for name in SERVICES if "networks" in SERVICES[name]}
        assert on_a_network == {"network", "courier-a", "courier-b"}
        for site in ("site-a", "site-b"):
            assert SERVICES["network"]["networks"][site]["aliases"] == ["gateway"]

    def test_the_gateway_holds_no_key_but_its_own(self):
        assert mounts("gateway") == {"/gateway": ("gateway", True)}

    def test_the_history_has_no_network_and_no_password(self):
        assert SERVICES["postgres"]["network_mode"] == "none"
        for name in ("superexec", "demo"):
            url = SERVICES[name]["environment"]["CONSILIA_HISTORY"]
            assert url.startswith("postgresql+psycopg://consilia@/")
            assert mounts(name)["/run/postgresql"] == mounts("postgres")["/run/postgresql"]

    def test_no_variable_is_a_secret(self):
        words = re.compile("password|secret|token|key", re.IGNORECASE)
        for settings in SERVICES.values():
            assert not [name for name in settings.get("environment", {}) if words.search(name)]


def test_graphics_cards_are_the_agents():
    override = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8"))
    asked = {name for name, settings in override["services"].items() if "deploy" in settings}
    assert asked == {"agent-a", "agent-b"}
    for name in asked:
        (device,) = override["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    for settings in override["services"].values():
        assert not {"user", "network_mode", "read_only", "cap_drop"} & settings.keys()


class TestDockerfile:
    def test_has_the_targets_that_are_used(self):
        stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
        assert {service["build"]["target"] for service in SERVICES.values()} <= stages
        assert {"server", "agent", "courier"} <= stages

    def test_every_image_ends_as_an_unprivileged_user(self):
        stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
        users = {}
        for stage in stages:
            parent, name = re.match(r"(\S+) AS (\S+)", stage).groups()
            found = re.findall(r"^USER (\S+)", stage, re.MULTILINE)
            users[name] = found[-1] if found else users.get(parent)
        for service in SERVICES.values():
            assert users[service["build"]["target"]] == "10001:10001"

    def test_installs_only_what_a_lock_names(self):
        for line in re.findall(r"python3 -m pip .*install .*", DOCKERFILE):
            ours, locked = "/wheels/*.whl" in line, "--require-hashes -r requirements-" in line
            assert ours or locked or '"torch==${TORCH}"' in line

    def test_torch_is_the_projects(self):
        with (ROOT / "pyproject.toml").open("rb") as file:
            wanted = tomllib.load(file)["project"]["dependencies"]
        version = re.search(r"^ARG TORCH=(\S+)", DOCKERFILE, re.MULTILINE)[1]
        assert f"torch=={version}" in wanted

    def test_secrets_of_the_build_stay_outside(self):
        assert "COPY . " not in DOCKERFILE
        ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        assert "*" in ignored  # all but what is named
        for folder in ("tests", "runs", "coordinator", ".git"):
            assert f"!{folder}" not in ignored


def entries(name):
    """The lock's entries by package, with their hashes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {}
    for entry in re.findall(r"^[a-z0-9].*(?:\n {4}.*)*", text, re.MULTILINE):
        found.setdefault(re.match(r"[\w.-]+", entry)[0], set()).add(entry)
    return found


@pytest.mark.parametrize("image", ["build", "courier", "server", "agent"])
class TestLock:
    def test_names_what_requirements_lock_names(self, image):
        everything, mine = entries("requirements.lock"), entries(f"requirements-{image}.lock")
        assert len(mine) > 3
        for name, lines in mine.items():
            assert lines == everything[name]
            assert all("--hash=sha256:" in line for line in lines)

    def test_is_what_the_script_makes(self, image, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))
        import lock_difference
        import lock_images

        base = lock_difference.entries(str(ROOT / "requirements.lock"))
        written = (ROOT / f"requirements-{image}.lock").read_text(encoding="utf-8")
        assert lock_images.lock(image, base) == written


HEAVY = ("torch", "transformers", "peft", "tokenizers", "pandas", "pyarrow", "pydicom", "pillow")
TOOLS = ("pip", "uv", "pytest", "mypy", "ruff", "playwright", "ray")


def test_the_courier_has_nothing_that_reads_a_record_or_loads_a_model():
    names = entries("requirements-courier.lock").keys()
    assert not names & {*HEAVY, *TOOLS, "scikit-learn", "scipy", "dp-accounting", "psycopg"}


def test_the_coordinator_has_no_torch_and_nobody_a_tool():
    assert not entries("requirements-server.lock").keys() & {*HEAVY, *TOOLS}
    assert not entries("requirements-agent.lock").keys() & set(TOOLS)


PROGRAMS = {
    "courier": (
        *("simulations.cli", "client.cli", "client.app", "client.courier", "client.node_session"),
        "client.provisioning.commands",
    ),
    "server": (
        *("simulations.cli", "server.cli", "server.app", "server.start", "server.watch"),
        *("server.submit", "server.status", "server.anchors", "server.provisioning.commands"),
        *("simulations.deployed", "simulations.report", "simulations.runs"),
    ),
}
BLOCKED = """
import importlib.metadata as metadata
import json, sys

allowed, modules = map(set, json.loads(sys.argv[1]))
absent = {
    top
    for top, owners in metadata.packages_distributions().items()
    if top not in ("client", "server", "shared", "simulations")
    and not {owner.lower().replace("_", "-") for owner in owners} & allowed
}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Absent())
for name in sorted(modules):
    __import__(name)
"""


@pytest.mark.parametrize("image", sorted(PROGRAMS))
def test_the_lock_has_all_that_the_programs_import(image):
    allowed = list(entries(f"requirements-{image}.lock"))
    words = json.dumps([allowed, PROGRAMS[image]])
    command = [sys.executable, "-c", BLOCKED, words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


class TestDemonstration:
    def test_its_job_can_be_used(self):
        job = load_job(DEMONSTRATION / "job.toml")
        assert job.rounds == 3
        assert job.data.sites == ["site-a", "site-b"]
        assert job.model.base == "consilia-tiny"

    def test_its_policy_allows_the_job_and_names_who_may_ask(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(DEMONSTRATION))
        from demonstration import POLICY

        path = tmp_path / "policy.toml"
        path.write_text(POLICY.format(coordinator="a" * 64, base="b" * 64), encoding="utf-8")
        policy, job = SitePolicy.load(path), load_job(DEMONSTRATION / "job.toml")
        assert policy.coordinators == ("a" * 64,)
        assert policy.base_sha256 == ("b" * 64,)
        assert job.aggregate.rule in policy.rules
        assert job.personalize.method in policy.personalization
        assert set(job.lora.targets) <= set(policy.targets)
        assert policy.minimum_cohort <= len(job.data.sites)
        assert not policy.exact
