"""This machine: its device, who can open the site's files, the agent's socket and state."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from client.check.finding import Finding, size
from client.service import check_socket_path
from client.settings import Device
from shared.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: Its maker's name for it.
        free: Bytes that nobody uses.
        total: Bytes of its memory.
    """

    name: str
    free: int
    total: int


def gpu() -> Gpu | None:
    """Return the device that would be used; ``None`` if there is none."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Gpu(torch.cuda.get_device_name(), free, total)


def judge_device(wanted: Device, found: Gpu | None, threads: int) -> Finding:
    """Whether the device of ``site.toml`` is there."""
    cpu = f"the CPU, {threads} thread{'' if threads == 1 else 's'} of {os.cpu_count() or 1} cores"
    if wanted == "cpu":
        return Finding("", "ok", cpu + (f", although there is {found.name}" if found else ""))
    if found is not None:
        words = f"{found.name}, {size(found.free)} of {size(found.total)} free"
        if found.free < found.total / 4:
            do = "stop what else uses it, or choose another with CUDA_VISIBLE_DEVICES"
            return Finding("", "warn", words, "most of its memory free", do)
        return Finding("", "ok", words)
    if wanted == "cuda":
        return Finding(
            "",
            "fail",
            "no CUDA device",
            'device = "cuda", as in site.toml',
            "install the GPU's driver, pass the GPU into the container, or set device to auto or "
            "cpu",
        )
    return Finding(
        "",
        "warn",
        f"no CUDA device; {cpu}",
        "a GPU, or time: see the forecast",
        "install the GPU's driver or pass it into the container; set device to cpu if there is "
        "none",
    )


@dataclass(frozen=True)
class Private:
    """A file or folder, and who may not do what with it.

    Attributes:
        path: Where it is; what is not there yet is not looked at.
        forbidden: Mode bits that must not be set.
        mend: The mode to set.
    """

    path: Path
    forbidden: int
    mend: str


_NOT_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NOT_OPEN = stat.S_IRWXG | stat.S_IRWXO


def private_files(
    config: Path, policy: Path, state: Path, place: Path, identity: Path
) -> list[Private]:
    """Return what must be the owner's own: the site's files and folders.

    Args:
        config: The ``site.toml``.
        policy: The ``policy.toml``.
        state: The agent's folder.
        place: The folder of the socket, which the courier's group may enter.
        identity: The folder of the site's keys.
    """
    return [
        Private(config, _NOT_WRITTEN_BY_OTHERS, "go-w"),
        Private(policy, _NOT_WRITTEN_BY_OTHERS, "go-w"),
        Private(state, _NOT_OPEN, "700"),
        Private(place, stat.S_IRWXO, "o-rwx"),
        Private(identity, _NOT_OPEN, "700"),
    ]


def judge_modes(files: Sequence[Private], user: int) -> Finding:
    """Whether others can read or change what is the site's own.

    Args:
        files: What to look at.
        user: Number of the user who runs this, and will run the agent.
    """
    open_to_others = list(_open_to_others(files))
    foreign = [f"{each.path}" for each in files if _owner(each.path) not in (None, user)]
    if open_to_others:
        found = ", ".join(f"{each.path} has mode {mode:04o}" for each, mode in open_to_others)
        do = "; ".join(f"chmod {each.mend} {each.path}" for each, _ in open_to_others)
        return Finding("", "fail", found, "nobody but the owner", do)
    if foreign:
        return Finding(
            "",
            "warn",
            f"of another user: {', '.join(foreign)}",
            "the user who runs the agent",
            "run this check as the user who runs the agent, or chown these to that user",
        )
    there = sum(_owner(each.path) is not None for each in files)
    return Finding("", "ok", f"{there} files and folders are their owner's alone")


def _open_to_others(files: Sequence[Private]) -> Iterator[tuple[Private, int]]:
    for each in files:
        try:
            mode = stat.S_IMODE(each.path.stat().st_mode)
        except OSError:
            continue
        if mode & each.forbidden:
            yield each, mode


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


SocketState = Literal["absent", "answers", "left-behind", "no-socket"]


def socket_state(path: Path) -> SocketState:
    """Return whether an agent listens at a socket."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return "no-socket"
    except OSError:
        return "absent"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            return "left-behind"
    return "answers"


def judge_socket(path: Path, state: SocketState) -> Finding:
    """Whether a socket can be there."""
    try:
        check_socket_path(path)
    except ConfigError as error:
        do = "set socket in site.toml to a shorter path, such as /run/consilia/agent.sock"
        return Finding("", "fail", str(error), "a path that a socket can have", do)
    if state == "no-socket":
        do = "remove it, or set socket in site.toml to another path"
        return Finding("", "fail", f"{path} is a file", "a socket, or nothing yet", do)
    words = {
        "absent": f"none yet at {path}; the agent makes it",
        "answers": f"an agent answers at {path}",
        "left-behind": f"{path} was left by an agent that is gone; the next one replaces it",
    }
    return Finding("", "ok", words[state])


def is_held(state: Path) -> bool:
    """Return whether an agent holds the site's state."""
    try:
        with (state / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def judge_agents(state: Path, socket_is: SocketState, *, held: bool) -> Finding:
    """Whether one agent at most works on the site's state, and it is the one at the socket."""
    if held and socket_is == "answers":
        words = "one agent is running; it shares the machine with this check, which takes longer"
        return Finding("", "ok", words)
    if held:
        return Finding(
            "",
            "fail",
            f"an agent works on {state}, and not at this site's socket",
            "one agent for one state",
            "stop the other agent, or give this site.toml another state and socket",
        )
    if socket_is == "answers":
        return Finding(
            "",
            "fail",
            f"an agent answers at this site's socket, and it does not work on {state}",
            "the socket of this site's agent",
            "stop the other agent, or give this site.toml another socket",
        )
    return Finding("", "ok", "no agent is running yet")
