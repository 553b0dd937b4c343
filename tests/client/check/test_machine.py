"""What is looked at on the machine: device, modes, socket, agents, room."""

import socket
from pathlib import Path

import pytest

from client.check.finding import duration, size
from client.check.forecast import (
    Forecast,
    free_bytes,
    judge_disk,
    judge_memory,
    judge_time,
    judge_traffic,
)
from client.check.machine import (
    Gpu,
    Private,
    is_held,
    judge_agents,
    judge_device,
    judge_modes,
    judge_socket,
    socket_state,
)
from client.check.measure import Measured
from client.check.traffic import Traffic
from shared.config import JobConfig
from shared.files import held

BIG = Gpu("GPU X", 70 * 10**9, 80 * 10**9)
GB = 10**9


@pytest.mark.parametrize(
    ("wanted", "found", "state"),
    [
        ("cuda", None, "fail"),
        ("auto", None, "warn"),
        ("cpu", None, "ok"),
        ("cuda", BIG, "ok"),
        ("auto", Gpu("GPU X", GB, 80 * GB), "warn"),
    ],
)
def test_the_device_of_the_site_file(wanted, found, state):
    finding = judge_device(wanted, found, 2)
    assert finding.state == state
    assert (finding.do == "") == (state == "ok")


def test_modes_are_those_that_others_could_use(tmp_path):
    open_file, closed = tmp_path / "policy.toml", tmp_path / "state"
    open_file.write_text("")
    closed.mkdir(mode=0o700)
    open_file.chmod(0o664)
    files = [Private(open_file, 0o022, "go-w"), Private(closed, 0o077, "700")]
    files.append(Private(tmp_path / "later", 0o077, "700"))
    user = open_file.stat().st_uid
    finding = judge_modes(files, user)
    assert finding.found == f"{open_file} has mode 0664"
    assert finding.do == f"chmod go-w {open_file}"
    open_file.chmod(0o644)
    assert judge_modes(files, user).state == "ok"
    assert judge_modes(files, user + 1).state == "warn"


def test_a_socket_and_its_agent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    path = folder / "a.sock"
    assert socket_state(path) == "absent"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        assert socket_state(path) == "answers"
    assert socket_state(path) == "left-behind"
    assert judge_socket(path, "left-behind").state == "ok"
    path.unlink()
    path.write_text("")
    assert judge_socket(path, socket_state(path)).state == "fail"
    far = folder / ("x" * 120)
    assert "a socket's path may have" in judge_socket(far, "absent").found


def test_one_agent_for_one_state(tmp_path):
    state = tmp_path / "state"
    assert not is_held(state)
    with held(state, "taken"):
        assert is_held(state)
        assert is_held(state)  # looking does not disturb
    assert not is_held(state)
    assert judge_agents(state, "answers", held=True).state == "ok"
    assert judge_agents(state, "absent", held=False).state == "ok"
    assert judge_agents(state, "absent", held=True).state == "fail"
    assert judge_agents(state, "answers", held=False).state == "fail"


@pytest.mark.parametrize(
    ("free", "needed", "state"),
    [(9 * GB, GB, "ok"), (GB, 2 * GB, "fail"), (3 * GB, 2 * GB, "warn"), (GB // 2, None, "warn")],
)
def test_room_on_the_disk(free, needed, state):
    finding = judge_disk(Path("state"), free, needed)
    assert finding.state == state
    assert (finding.do == "") == (state == "ok")


def test_room_is_looked_for_where_the_folder_will_be(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.1)


MEASURED = Measured(8, 3.0, 0.5, 1.0, 2.0, GB)


def test_work_is_steps_and_what_is_beside_them():
    assert MEASURED.work_seconds == 1.0 + 8 * 0.5


def test_a_round_beyond_the_deadline():
    job = JobConfig.model_validate({"name": "t", "aggregate": {"deadline_seconds": 60}})
    slow = Forecast(61.0, 700.0, GB, None, None)
    finding = judge_time(MEASURED, slow, job)
    assert finding.state == "warn"
    assert "8 steps of 500 ms" in finding.found
    assert "deadline_seconds" in finding.do
    assert judge_time(MEASURED, Forecast(59.0, 700.0, GB, None, None), job).state == "ok"


def test_memory_with_a_quarter_to_spare():
    found = Forecast(1.0, 1.0, 8 * GB, 50 * GB, None)
    assert judge_memory(found, 16 * GB, 80 * GB).state == "ok"
    assert judge_memory(found, 9 * GB, 80 * GB).state == "warn"
    assert judge_memory(found, 16 * GB, 60 * GB).state == "warn"


def test_a_message_that_is_too_large_for_the_socket():
    fits = Traffic([2000, 1000], [10, 10], 5, 5, 0)
    assert judge_traffic(fits, 2).state == "ok"
    assert "down 1.5 kB, up 10 bytes a round" in judge_traffic(fits, 2).found
    finding = judge_traffic(Traffic([600 * 2**20], [10], 5, 5, 0), 1)
    assert finding.state == "fail"
    assert "lora.rank" in finding.do


def test_numbers_for_people():
    assert [size(n) for n in (999, 1500, 2_000_000, 3 * 10**12)] == [
        "999 bytes",
        "1.5 kB",
        "2.0 MB",
        "3000 GB",
    ]
    assert [duration(s) for s in (0.25, 61.0, 600, 9000)] == ["250 ms", "61.0 s", "10 min", "2.5 h"]
