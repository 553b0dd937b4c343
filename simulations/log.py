"""A run's log: what sites and grid note while it is under way goes to a file, not between tables.

The notes hold reason codes and places in the code, never a record's content.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = "log.txt"
_OURS = ("client", "server", "shared", "simulations")


class _Patient(logging.FileHandler):
    """Goes on without the file where it cannot be written; a full disk is told elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the note."""


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Write our own packages' notes to a file, which is made when there is the first."""
    handler = _Patient(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in _OURS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
