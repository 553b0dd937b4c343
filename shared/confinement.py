"""Keeps a program, and all that it starts, to some folders and ports (Linux's Landlock).

What the SuperLink sends is code, and Flower runs it at the site, as the courier. Here the kernel
keeps it from everything but Flower's own files, the gateway and the agent's socket: it cannot
open a record, not even as the user who owns it. Needs no privilege; see landlock(7).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, on every architecture
_VERSION_FLAG = 1
_PATH_RULE, _PORT_RULE = 1, 2
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_TRUNCATE, _DEVICE_CONTROL = 1 << 14, 1 << 15
_ALL_BY_VERSION: Final = (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF)
"""Rights to files that a version of Landlock knows; the last one from there on."""
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL
"""Rights that a single file can be given; the others belong to folders."""
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_BIND, _CONNECT = 1, 2
_NETWORK_VERSION, _SCOPE_VERSION = 4, 6
_OTHERS = 3
"""Neither abstract sockets nor signals to processes outside."""


@dataclass(frozen=True)
class Allowed:
    """What a confined program may do.

    Attributes:
        read: Files and folders that it may read, and run programs of; missing ones are left out.
        listed: Folders whose entries it may see, without reading them.
        write: Folders and devices that it may read and change.
        connect: TCP ports that it may connect to, wherever they are.
        listen: TCP ports that it may listen at.
    """

    read: Sequence[Path] = ()
    listed: Sequence[Path] = ()
    write: Sequence[Path] = ()
    connect: Sequence[int] = ()
    listen: Sequence[int] = ()


class Confinement:
    """Rules that a child process puts on itself before it becomes the program.

    Args:
        allowed: What it may do.

    Raises:
        OSError: If this kernel has no Landlock; see ``is_possible``.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        version = _version(self._libc)
        if version < 1:
            raise OSError(errno.ENOSYS, "this kernel cannot confine a program (Landlock)")
        self._files = _ALL_BY_VERSION[min(version, len(_ALL_BY_VERSION) - 1)]
        network = _BIND | _CONNECT if version >= _NETWORK_VERSION else 0
        rules = struct.pack("=QQQ", self._files, network, _OTHERS)
        size = 24 if version >= _SCOPE_VERSION else 16 if network else 8
        self._rules = self._call(_CREATE_RULESET, rules, size, 0)
        for rights, paths in (
            (_READ, allowed.read),
            (_READ_FOLDER, allowed.listed),
            (self._files, allowed.write),
        ):
            for path in paths:
                self._allow(path, rights)
        if network:
            for right, ports in ((_CONNECT, allowed.connect), (_BIND, allowed.listen)):
                for port in ports:
                    self._call(
                        _ADD_RULE, self._rules, _PORT_RULE, struct.pack("=QQ", right, port), 0
                    )

    def enter(self) -> None:
        """Confine this process and all that it will start; nothing undoes it.

        Raises:
            OSError: If the kernel refuses; then the program must not be started.
        """
        if self._libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        self._call(_RESTRICT_SELF, self._rules, 0)

    def _allow(self, path: Path, rights: int) -> None:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return  # what is not there need not be allowed
        try:
            rights &= self._files if path.is_dir() else self._files & _OF_FILES
            if rights:
                rule = struct.pack("=Qi", rights, opened)
                self._call(_ADD_RULE, self._rules, _PATH_RULE, rule, 0)
        finally:
            os.close(opened)

    def _call(self, number: int, *arguments: int | bytes) -> int:
        done = int(self._libc.syscall(ctypes.c_long(number), *map(_argument, arguments)))
        if done < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"Landlock: {os.strerror(code)}")
        return done


def is_possible() -> bool:
    """Return whether this kernel can confine a program."""
    try:
        return _version(ctypes.CDLL(None, use_errno=True)) >= 1
    except (OSError, AttributeError):
        return False


def _version(libc: ctypes.CDLL) -> int:
    call = ctypes.c_long(_CREATE_RULESET)
    return int(libc.syscall(call, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))


def _argument(value: int | bytes) -> object:
    return ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_long(value)
