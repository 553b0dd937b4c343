"""The baselines beside the federation: a second process, so that both cores work.

Local-only and centralised training need nothing from the federation, and it needs nothing from
them until the last evaluation. They write adapters to files; what exists is not done again.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.config import JobConfig
from shared.errors import ConsiliaError
from shared.files import storage_errors

LOG = Path("baselines") / "log.txt"
RECORDS_THERE = b"records are there\n"
"""Said on the standard input of the process: the records can be read."""
_POLL_SECONDS = 0.2


class BaselinesProcess:
    """Trains the job's baselines; use as a context, and ``wait`` before their adapters are read.

    It starts while the records are being written, and begins once ``records_are_there``.

    Args:
        run: The run directory.
        job: The job; without baselines this does nothing.
    """

    def __init__(self, run: Path, job: JobConfig) -> None:
        self._run = run
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._there = False

    def __enter__(self) -> Self:
        if self._job.evaluate.baselines and self._job.simulation.workers > 1:
            self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def records_are_there(self) -> None:
        """Let the process read the records; until then it only loads what it needs for them."""
        self._there = True
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError), self._process.stdin as stdin:  # it may be done already
                stdin.write(RECORDS_THERE)

    def wait(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Wait until all baselines are trained.

        Args:
            say: Told once if there is something to wait for.

        Raises:
            ConsiliaError: If a baseline could not be trained.
        """
        if not self._job.evaluate.baselines:
            return
        if self._process is None:
            say("Training the baselines")
            self._start()
        process = self._process
        if process is None:  # pragma: no cover - _start sets it
            return
        if process.poll() is None:
            say("Waiting for the baselines")
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
        if process.returncode:
            raise ConsiliaError(
                f"the baselines ended with exit code {process.returncode}; {self._run / LOG} says "
                f"why; mend that and go on with --resume {self._run}"
            )

    def _start(self) -> None:
        log = self._run / LOG
        with storage_errors(f"{log}: could not be made; go on with --resume {self._run}"):
            log.parent.mkdir(parents=True, exist_ok=True)
            file = log.open("ab")
        with file:
            # Its own session: Ctrl-C reaches the federation, which then ends this process.
            self._process = subprocess.Popen(  # noqa: S603 - our own module and folder
                [sys.executable, "-m", "simulations.baselines", "--with-parent", str(self._run)],
                stdout=file,
                stderr=file,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        if self._there:
            self.records_are_there()
