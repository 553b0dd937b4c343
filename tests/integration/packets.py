"""A line that loses packets: real IP packets, so that the system's own TCP has to make up for it.

Two TUN devices, one here and one in a network namespace of its own, and a thread that carries each
packet from one to the other after a delay, or throws it away. Unlike ``tc netem`` this needs no
module of the kernel, but it needs root and ``/dev/net/tun``; ``why_not`` says what is missing.
"""

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from shared.processes import die_with_parent

HERE, THERE = "198.18.7.1", "198.18.7.2"
"""Of a range that is set aside for tests of networks (RFC 2544)."""

_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
_MTU = 1400


def why_not():
    """Return what keeps such a line from being made on this machine; ``None`` if nothing does."""
    if os.geteuid() != 0:
        return "only root can make network devices"
    try:
        with LossyLine(0.0, 0.0) as line, socket.create_server((HERE, 0)) as listener:
            connect = f"import socket; socket.create_connection({listener.getsockname()}, 5)"
            asked = [*line.inside, sys.executable, "-c", connect]
            passes = subprocess.run(asked, capture_output=True, check=False).returncode == 0
            return None if passes else "packets do not pass between two namespaces"
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network devices cannot be made here ({error})"


class LossyLine:
    """A line between this machine (``HERE``) and a namespace of its own (``THERE``).

    Args:
        loss: Share of the packets that are lost, in each direction.
        delay: Seconds that a packet is on its way.
        seed: Of the losses.

    Attributes:
        inside: Words before a command that is to run at the far end.
    """

    def __init__(self, loss, delay, seed=0):
        self.loss, self.delay = loss, delay
        self.carried = self.lost = 0
        self.inside = []
        self._dice = random.Random(seed)
        self._devices = []
        self._holder = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="lossy-line", daemon=True)

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for device in self._devices:
            os.close(device)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()

    def _make(self):
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"],
            preexec_fn=die_with_parent,  # noqa: PLW1509 - a killed test leaves nothing behind
        )
        mine, its = (Path(f"/proc/{pid}/ns/net") for pid in ("self", self._holder.pid))
        end = time.monotonic() + 5
        while its.readlink() == mine.readlink():
            if time.monotonic() > end or self._holder.poll() is not None:
                raise OSError("no network namespace was made")
            time.sleep(0.01)
        self.inside = ["nsenter", f"--net={its}", "--"]
        names = [f"lossy{os.getpid() % 100000}{end}" for end in "ab"]
        self._devices = [_device(name) for name in names]
        _ip("link", "set", names[1], "netns", str(self._holder.pid))
        _ip("link", "set", "lo", "up", inside=self.inside)
        for name, own, other, inside in (
            (names[0], HERE, THERE, []),
            (names[1], THERE, HERE, self.inside),
        ):
            _ip("addr", "add", own, "peer", other, "dev", name, inside=inside)
            _ip("link", "set", name, "mtu", str(_MTU), "up", inside=inside)

    def _carry(self):
        """Carry packets both ways until the end; the order on the way is kept."""
        near, far = self._devices
        other, waiting, numbers = {near: far, far: near}, [], itertools.count()
        while not self._stop.is_set():
            soon = waiting[0][0] - time.monotonic() if waiting else 0.2
            readable, _, _ = select.select(self._devices, [], [], max(0.0, min(soon, 0.2)))
            for device in readable:
                packet = os.read(device, 65536)
                if self._dice.random() < self.loss:
                    self.lost += 1
                else:
                    due = time.monotonic() + self.delay
                    heapq.heappush(waiting, (due, next(numbers), other[device], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(waiting)
                self.carried += 1
                with contextlib.suppress(OSError):  # a device that is not up takes nothing
                    os.write(device, packet)


def _device(name):
    device = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER)
    try:
        fcntl.ioctl(device, _TUNSETIFF, request)
    except OSError:
        os.close(device)
        raise
    return device


def _ip(*arguments, inside=()):
    subprocess.run([*inside, "ip", *arguments], check=True, capture_output=True)
