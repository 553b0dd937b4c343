"""Calls side by side in processes of their own, or one after the other in this one.

Ctrl-C reaches this process alone; it stops the others, which then leave their runs as cleanly as
if they had been stopped themselves.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_SECONDS_TO_STOP = 20.0


class Workers:
    """Carries out calls; use as a context.

    Args:
        count: Calls at a time; 1 makes them in this process.
    """

    def __init__(self, count: int) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Not forked: a process that has used torch's threads cannot be.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, initializer=_begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if error is None:
            self._pool.shutdown()
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        _stop_children()

    def each(
        self, call: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Yield every item with what the call gave for it, in the order in which calls end.

        Raises:
            BrokenProcessPool: If a process ended without a word.
        """
        if self._pool is None:
            yield from ((item, call(item)) for item in items)
            return
        waiting = {self._pool.submit(call, item): item for item in items}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a worker that is terminated end its run as cleanly as Ctrl-C does elsewhere."""
    if multiprocessing.parent_process() is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin() -> None:
    """Leave Ctrl-C to the process that started this one, and end when that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop_children() -> None:
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()  # what it has committed is intact
