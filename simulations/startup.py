"""Starting quickly: no collection of garbage while a process loads what it keeps anyway.

Python looks through all objects again whenever their number has grown by a quarter, and twice
when it ends. Modules, classes and a base are no garbage: of a run of seven seconds, that took
more than one.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LANE: Final = "sites-"
"""How the names of the threads begin in which sites train; no process may end as usual then."""


@contextmanager
def loading() -> Iterator[None]:
    """Collect no garbage within, and never again look through what is there at its end.

    For the beginning of a process only: garbage that is there at the end stays for good.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
        atexit.register(gc.freeze)  # memory goes back to the system as it is
