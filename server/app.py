"""The coordinator as a Flower ServerApp: the same round loop in every engine.

In a deployment Flower starts ``main`` with the name of the run that ``consilia server submit``
made in the coordinator's folder; what is committed there decides where the run goes on. In a
simulation ``run_job`` is called with a grid of our own, or from a ServerApp inside Flower's
simulation engine.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.checkpoint import RunStore
from server.events import Event
from server.first_features import creamfl_of
from server.history import PATIENT, RunHistory
from server.home import HOME_VARIABLE, CoordinatorHome
from server.provisioning.identity import coordinator_identity
from server.proxy.step import Distiller
from server.questions import Persistence
from server.rounds import RoundEngine, RunOutcome
from server.run_files import is_locked
from server.secure_session import Members
from server.signed_post import CoordinatorIdentity
from server.statements import statements
from shared.adapter import AdapterLayout
from shared.config import JobConfig
from shared.errors import ConfigError, RunDirectoryError
from shared.layout_file import load_layout

LAYOUT = "layout.json"
"""Name of the layout's file in the run directory."""

_HANDOVER_SECONDS = 15.0

app = ServerApp()


@runtime_checkable
class WakingGrid(Protocol):
    """A grid that can say when a reply has come, so that nobody need look every so often."""

    def wait(self, timeout: float) -> None:
        """Wait until a reply has come since the last pull, or so many seconds have passed."""
        ...


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run that the run configuration names, or go on with it.

    The coordinator's folder comes from the environment: Flower sends the run configuration to
    every site, and neither paths nor a database's password are the sites' business.

    Raises:
        ConfigError: If no run or no folder is named.
        IdentityError: If the folder holds a consortium that cannot be used.
        RunDirectoryError: If there is no such run, or its layout belongs to another base.
        QuorumError: If too few sites answered; what is committed is intact.
    """
    home = CoordinatorHome.at(Path(_folder()))
    folder = home.run_path(_run(context))
    with _when_free(folder) as store, RunHistory(home.history_url, PATIENT) as history:
        layout, base_sha256 = load_layout(folder / LAYOUT)
        if base_sha256 != store.base_sha256:
            raise RunDirectoryError(f"{folder / LAYOUT}: belongs to another base than the run")
        identity = coordinator_identity(home.folder)
        run_job(
            grid,
            store.job,
            store,
            history,
            layout,
            base_sha256,
            persistence=Persistence(),
            identity=identity,
        )


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
    persistence: Persistence | None = None,
    identity: CoordinatorIdentity | None = None,
    members: Members | None = None,
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
        persistence: How a site that does not answer is asked again; not at all if not given.
        identity: Signs requests and knows the sites' keys; unsigned without it.
        members: Who may take part in secure sums, where there is no identity.

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
        persistence=persistence,
        identity=identity,
        members=members,
        sleep=grid.wait if isinstance(grid, WakingGrid) else time.sleep,
    )
    outcome = engine.run()
    store.tell_privacy(statements(job, outcome))
    return outcome


def _folder() -> str:
    folder = os.environ.get(HOME_VARIABLE, "")
    if not folder:
        raise ConfigError(
            f"{HOME_VARIABLE} is not set; start the coordinator with `consilia server start`"
        )
    return folder


def _run(context: Context) -> str:
    run = context.run_config.get("run")
    if not isinstance(run, str) or not run:
        raise ConfigError(
            "run configuration: run is missing; start runs with `consilia server submit`"
        )
    return run


def _when_free(folder: Path) -> RunStore:
    """Open a run; the ServerApp that carried it before may be just about to end."""
    end = time.monotonic() + _HANDOVER_SECONDS
    while True:
        try:
            return RunStore.open(folder)
        except RunDirectoryError:
            if not is_locked(folder) or time.monotonic() > end:
                return RunStore.open(folder)  # whoever only looked is gone, or it is something else
            time.sleep(0.2)
