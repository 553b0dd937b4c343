"""The agent's process: its own base, one at a time, a socket in a private place."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.agent_process import _private_place, own_base
from client.courier import CourierSettings, courier_unit, run_courier
from client.sealed_state import AGENT_AT_WORK
from client.service import SocketChannel
from client.settings import load_agent
from shared.config import JobConfig
from shared.errors import BaseModelError, ConfigError
from shared.files import held
from shared.messages import Request, decode_reply, encode

ROOT = Path(__file__).parents[2]
SITE = 'name = "north"\nstate = "state"\nthreads = 1\n[data]\ntable = "metadata.csv"\n'


@pytest.fixture
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("n")
    (folder / "site.toml").write_text(SITE)
    (folder / "policy.toml").write_text("minimum_count = 5\n")
    (folder / "metadata.csv").write_text("file_name,text\n")
    return folder


def settings_of(folder, **keys):
    text = "".join(f"{key} = {value}\n" for key, value in keys.items())
    (folder / "site.toml").write_text(text + SITE)
    return load_agent(folder / "site.toml")


def test_an_agents_settings_start_at_the_files_folder(folder):
    settings = settings_of(folder, socket='"s/a.sock"', base='"clip"', answer_seconds=5)
    assert settings.socket == folder / "s" / "a.sock"
    assert settings.policy == folder / "policy.toml"
    assert settings.base == folder / "clip"
    assert settings.answer_seconds == 5


@pytest.mark.parametrize("key", ["answer_seconds = 0", "threads = 0", "polcy = 1"])
def test_a_wrong_key_is_named(folder, key):
    (folder / "site.toml").write_text(f"{key}\n{SITE.replace('threads = 1', '')}")
    with pytest.raises(ConfigError, match=key.split(" ", maxsplit=1)[0]):
        load_agent(folder / "site.toml")


def job(base):
    return JobConfig.model_validate({"name": "job", "model": {"base": base}})


def test_a_jobs_paths_are_not_followed(folder):
    """The coordinator names bases as they lie at its own place."""
    own = settings_of(folder, base='"clip"')
    assert own_base(own, job("/etc")) == str(folder / "clip")
    none = settings_of(folder)
    assert own_base(none, job("consilia-tiny")) == "consilia-tiny"
    for base in ("/etc", "openai/clip-vit-base-patch32"):
        with pytest.raises(BaseModelError, match=r"site\.toml"):
            own_base(none, job(base))


def test_one_agent_works_on_a_state(tmp_path):
    state, taken = tmp_path / "state", pytest.raises(ConfigError, match="another agent")
    with held(state, AGENT_AT_WORK), taken, held(state, AGENT_AT_WORK):
        pass
    with held(state, AGENT_AT_WORK):
        pass


def test_the_sockets_folder_is_private(tmp_path):
    _private_place(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        _private_place(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o755


def test_an_agent_serves_until_it_is_told_to_end(folder):
    """The command itself: it answers at its socket, and leaves nothing behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations.cli", "client", "agent", "--config", "site.toml"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "agent north ready" in process.stdout.readline()
        request = Request(
            kind="describe",
            run="run",
            site="south",
            base_sha256="0" * 64,
            job_sha256="0" * 64,
            job=job("consilia-tiny"),
        )
        reply, _ = decode_reply(
            SocketChannel(folder / "run" / "agent.sock").handle(encode(request))
        )
        assert (reply.site, reply.status, reply.reason) == ("north", "refused", "other-site")
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 5
        assert "agent north stopped" in process.stdout.read()
        assert not (folder / "run" / "agent.sock").exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_courier_knows_the_socket_and_nothing_of_records(tmp_path):
    settings = CourierSettings("gw.example:443", tmp_path / "a.sock", tmp_path / "c")
    unit = courier_unit(settings, 4711)
    supernode, superexec = unit.commands
    assert f'agent-socket="{tmp_path / "a.sock"}"' in supernode
    assert supernode[supernode.index("--isolation") + 1] == "process"
    assert supernode[supernode.index("--superlink") + 1] == "gw.example:443"
    runtime = superexec[superexec.index("--runtime-api-address") + 1]
    assert runtime == f"127.0.0.1:{supernode[supernode.index('--port') + 1]}" == "127.0.0.1:4711"
    assert unit.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert unit.environment["FLWR_HOME"] == str(tmp_path / "c" / "flower")


@pytest.mark.parametrize("superlink", ["gw.example", "gw:port", ":443"])
def test_a_wrong_address_is_named(tmp_path, superlink):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        run_courier(CourierSettings(superlink, tmp_path / "a.sock", tmp_path / "c"))


def test_the_couriers_command_imports_no_torch():
    code = "import sys, client.courier; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
