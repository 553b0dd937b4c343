"""How far a piece of work is, and whether anybody still waits for it.

Whoever starts work lays a ``Progress`` beside it; what takes long tells after every step how far
it is, and ends there if nobody wants the answer any more. Work that nobody laid one beside, as in
a simulation, tells nobody.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from shared.errors import TrainingError

ABANDONED = "abandoned"
UNASKED_SECONDS = 900.0
"""A coordinator asks again every few seconds. One that has not for so long has ended the run, or
is away for so long that doing the work again is the lesser evil."""


@dataclass
class Progress:
    """Read and written by different threads; every field is written by one of them only.

    Attributes:
        done: Share of the work, from 0 to 1; ``None`` until it is known.
        asked: When the answer was asked for last, monotonic seconds.
        given_up: Whether the answer is known to be of no use any more.
    """

    done: float | None = None
    asked: float = field(default_factory=time.monotonic)
    given_up: bool = False

    def unasked(self, seconds: float) -> bool:
        """Return whether nobody has asked for the answer for so long."""
        return time.monotonic() - self.asked > seconds


_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def watched(progress: Progress) -> Iterator[None]:
    """Let what is done in the block, in this thread, tell how far it is."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def step_done(step: int, steps: int) -> None:
    """Tell that so many steps of so many are done.

    Raises:
        TrainingError: ``abandoned``, if the answer is not waited for any more.
    """
    progress = _progress.get()
    if progress is None:
        return
    if progress.given_up or progress.unasked(UNASKED_SECONDS):
        raise TrainingError(ABANDONED, "the request was given up before it was answered")
    progress.done = step / steps
