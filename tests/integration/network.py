"""A bad network: a TCP proxy that delays, throttles, cuts, refuses, corrupts and goes dark.

It stands between a courier and the coordinator, or between the coordinator and its database. What
happens to a connection depends on the seed, on which connection it is and on the bytes that went
before, never on the clock or on how the bytes came in pieces.
"""

import asyncio
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
"""``up`` is from whoever connected to the target."""

Judge = Callable[[Direction, bytes], bool]
"""Told of every piece before it goes on; returns whether the connection is cut instead."""

_PIECE = 16384
_WAITING_PIECES = 64
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Weather:
    """What a network does to what it carries.

    Attributes:
        delay: Seconds that every byte is on its way, in each direction.
        rate: Bytes per second in each direction of a connection; no limit if not given.
        refuse: Share of the connections that are reset as soon as they are made.
        cut_after: A connection is reset after so many bytes, on average; never if not given.
        corrupt_after: One byte in so many is changed, on average; none if not given.
    """

    delay: float = 0.0
    rate: float | None = None
    refuse: float = 0.0
    cut_after: float | None = None
    corrupt_after: float | None = None


@dataclass
class Counts:
    """What a network did so far."""

    connections: int = 0
    refused: int = 0
    cut: int = 0
    corrupted: int = 0
    up: int = 0
    down: int = 0


class _CutError(Exception):
    """The connection ends here."""


@dataclass
class _Fate:
    """What becomes of one direction of one connection, byte by byte."""

    weather: Weather
    dice: random.Random
    to_cut: float = field(init=False)
    to_corrupt: float = field(init=False)

    def __post_init__(self):
        self.to_cut = self._throw(self.weather.cut_after)
        self.to_corrupt = self._throw(self.weather.corrupt_after)

    def _throw(self, mean):
        return float("inf") if mean is None else 1 + int(self.dice.expovariate(1 / mean))

    def meet(self, piece, counts):
        """Return what comes out of a piece, and whether the connection ends after that."""
        cut = len(piece) >= self.to_cut
        if cut:
            piece = piece[: self.to_cut]
        changed, at = bytearray(piece), self.to_corrupt
        while at <= len(piece):
            changed[at - 1] ^= 1 << self.dice.randrange(8)
            counts.corrupted += 1
            at += self._throw(self.weather.corrupt_after)
        self.to_cut -= len(piece)
        self.to_corrupt = at - len(piece)
        return bytes(changed), cut


class BadNetwork:
    """Listens on loopback and carries what it gets to a target, as well as the weather lets it.

    Args:
        target: Host and port.
        weather: May be changed at any time; holds for connections made after that.
        seed: Of what is left to chance.
        judge: Decides on cuts at chosen bytes; for tests that need the exact moment.
        host: Where it listens.
    """

    def __init__(self, target, weather=Weather(), *, seed=0, judge=None, host="127.0.0.1"):
        self.target = target
        self.weather = weather
        self.judge = judge
        self.counts = Counts()
        self._seed = seed
        self._numbers = itertools.count(1)
        self._dark_until = 0.0
        self._open = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server((host, 0), backlog=256)
        self.host, self.port = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._work, name="bad-network", daemon=True)
        self._server = None

    def __enter__(self):
        self._thread.start()
        self._on_loop(self._start())
        return self

    def __exit__(self, *_):
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def go_dark(self, seconds):
        """Carry nothing for so long, without a word: bytes wait, nobody is told."""
        self._dark_until = time.monotonic() + seconds

    def cut_all(self):
        """Reset every connection that is open now."""
        self._on_loop(self._cut_all())

    def _work(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _on_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _start(self):
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def _cut_all(self):
        for writers in list(self._open):
            _reset(*writers)
            self.counts.cut += 1

    async def _close(self):
        self._server.close()
        for writers in list(self._open):
            _reset(*writers)
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader, writer):
        number = next(self._numbers)
        self.counts.connections += 1
        if random.Random(f"{self._seed}/{number}").random() < self.weather.refuse:
            self.counts.refused += 1
            _reset(writer)
            return
        await self._light()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        both = (writer, far_writer)
        self._open.add(both)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry("up", number, reader, far_writer))
                tasks.create_task(self._carry("down", number, far_reader, writer))
        except* (_CutError, OSError, asyncio.CancelledError):
            _reset(*both)
        else:
            for each in both:
                each.close()
        finally:
            self._open.discard(both)

    async def _carry(self, direction, number, reader, writer):
        """Carry one direction until its end; what is on its way does not hold up what follows."""
        weather = self.weather
        fate = _Fate(weather, random.Random(f"{self._seed}/{number}/{direction}"))
        on_its_way = asyncio.Queue(_WAITING_PIECES)

        async def deliver():
            free = 0.0
            while True:
                due, piece, ends = await on_its_way.get()
                length = len(piece) / weather.rate if weather.rate and piece else 0.0
                free = max(due, free) + length
                await asyncio.sleep(max(0.0, free - time.monotonic()))
                await self._light()
                if piece:
                    writer.write(piece)
                    await writer.drain()
                if ends == "cut":
                    raise _CutError
                if ends == "end":
                    writer.write_eof()
                    return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(deliver())
            while piece := await reader.read(_PIECE):
                due = time.monotonic() + weather.delay
                if self.judge is not None and self.judge(direction, piece):
                    piece, cut = b"", True
                else:
                    piece, cut = fate.meet(piece, self.counts)
                setattr(self.counts, direction, getattr(self.counts, direction) + len(piece))
                self.counts.cut += cut
                await on_its_way.put((due, piece, "cut" if cut else ""))
                if cut:
                    return
            await on_its_way.put((time.monotonic() + weather.delay, b"", "end"))

    async def _light(self):
        while (dark := self._dark_until - time.monotonic()) > 0:
            await asyncio.sleep(min(dark, _LOOK_SECONDS))


def _reset(*writers):
    """End connections as a network does that has forgotten them."""
    for writer in writers:
        link = writer.get_extra_info("socket")
        if link is not None and link.fileno() >= 0:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
