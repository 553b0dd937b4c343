"""The coordinator as a Flower ServerApp: the same round loop in every engine.

In a deployment Flower starts ``main`` with the run directory that ``consilia server submit``
made; what is committed there decides where the run goes on. In a simulation ``run_job`` is
called with a grid of our own, or from a ServerApp inside Flower's simulation engine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.checkpoint import RunStore
from server.events import Event
from server.first_features import creamfl_of
from server.history import RunHistory
from server.proxy.step import Distiller
from server.rounds import RoundEngine, RunOutcome
from shared.adapter import AdapterLayout
from shared.config import JobConfig
from shared.errors import ConfigError, RunDirectoryError
from shared.layout_file import load_layout

LAYOUT = "layout.json"
"""Name of the layout's file in the run directory."""

app = ServerApp()


@runtime_checkable
class WakingGrid(Protocol):
    """A grid that can say when a reply has come, so that nobody need look every so often."""

    def wait(self, timeout: float) -> None:
        """Wait until a reply has come since the last pull, or so many seconds have passed."""
        ...


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run whose directory the run configuration names, or go on with it.

    Raises:
        ConfigError: If the run configuration names no run directory.
        RunDirectoryError: If that is no run, or its layout belongs to another base.
        QuorumError: If too few sites answered; what is committed is intact.
    """
    folder = Path(_text(context, "run-directory"))
    with RunStore.open(folder) as store, RunHistory(_text(context, "history")) as history:
        layout, base_sha256 = load_layout(folder / LAYOUT)
        if base_sha256 != store.base_sha256:
            raise RunDirectoryError(f"{folder / LAYOUT}: belongs to another base than the run")
        run_job(grid, store.job, store, history, layout, base_sha256)


def run_job(  # noqa: PLR0913, PLR0917 - everything that a run consists of
    grid: Grid,
    job: JobConfig,
    store: RunStore,
    history: RunHistory,
    layout: AdapterLayout,
    base_sha256: str,
    on_event: Callable[[Event], None] | None = None,
    before_evaluation: Callable[[], None] | None = None,
    distiller: Distiller | None = None,
) -> RunOutcome:
    """Carry out a job over any grid, from its last committed round on.

    Args:
        grid: Reaches the sites.
        job: What to carry out.
        store: The run directory, locked.
        history: The database that names the committed rounds.
        layout: Which layers of the base carry an adapter.
        base_sha256: Digest of the frozen base.
        on_event: Told of everything that happens, as it happens.
        before_evaluation: Called once, when the adapters are finished and before the sites
            are asked to evaluate them; may wait for what they compare with.
        distiller: Improves the aggregated adapter, if the job has a ``[proxy]``.

    Raises:
        ConfigError: If the job has a ``[proxy]`` and there is nothing that carries it out.
        QuorumError: If too few sites answered; what is committed is intact.
        StorageError: If a round could not be stored; earlier rounds are intact.
    """
    if job.distils and distiller is None:
        raise ConfigError(
            "[proxy]: the server has no public set here; distillation at the server is for "
            "`consilia simulate` so far; leave [proxy] out"
        )
    engine = RoundEngine(
        grid,
        job,
        store,
        history,
        layout,
        base_sha256,
        aggregator=creamfl_of(store) if job.aggregate.shares_features else None,
        on_event=on_event,
        before_evaluation=before_evaluation,
        distiller=distiller,
        sleep=grid.wait if isinstance(grid, WakingGrid) else time.sleep,
    )
    return engine.run()


def _text(context: Context, key: str) -> str:
    value = context.run_config.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"run configuration: {key} is missing; start runs with `consilia server submit`"
        )
    return value
