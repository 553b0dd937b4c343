"""The baselines beside the federation: a second process, so that both cores work.

Local-only and centralised training need nothing from the federation, and it needs nothing from
them until the last evaluation. They write adapters to files; what exists is not done again.
"""

import os
import subprocess
import sys
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
        self._awaited = False

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

    @property
    def threads(self) -> int:
        """Threads for the sites' numerical work: also this process's share once it has ended.

        Before ``wait`` two processes share the machine; what comes after, encodes only, which
        gives the same bits with twice the threads.
        """
        simulation = self._job.simulation
        if not self._awaited or simulation.workers == 1:
            return simulation.threads
        return max(simulation.threads, min(2 * simulation.threads, os.cpu_count() or 1))

    def wait(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Wait until all baselines are trained.

        Args:
            say: Told once if there is something to wait for.

        Raises:
            ConsiliaError: If a baseline could not be trained.
        """
        if self._job.evaluate.baselines:
            self._wait(say)
        self._awaited = True

    def _wait(self, say: Callable[[str], None]) -> None:
        if self._process is None:
            say("Training the baselines")
            self._start()
        process = self._process
        if process is None:  # pragma: no cover - _start sets it
            return
        if process.poll() is None:
            say("Waiting for the baselines")
        if process.wait():
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
