"""Flower's simulation engine (Ray) carries the same run to the same bits; needs ``ray``."""

from functools import partial

import pytest

from client.agent import load_records
from client.together import answer_together
from server.app import run_job
from server.checkpoint import RunStore
from server.history import RunHistory
from shared.errors import ConfigError, QuorumError
from simulations import flower_engine
from simulations.cohorts import loads
from simulations.flower_engine import backend_config, quiet_environment
from simulations.flower_grid import run_flower
from simulations.grid import LocalGrid, Together


@pytest.fixture
def load_of(tmp_path):
    def load(federation):
        settings = federation.settings(tmp_path / "looked-at")
        data = {site.name: load_records(site, federation.encoder) for site in settings}
        return loads(data, federation.job)

    return load


def run_over_flower(federation, run, job, load, samples=1):
    base = federation.encoder.base_sha256
    with (
        RunStore.create(run, job, base_sha256=base) as store,
        RunHistory(f"sqlite:///{run / 'history.sqlite'}") as history,
    ):
        layout = federation.encoder.layout
        return run_flower(
            federation.settings(run),
            job,
            lambda grid: run_job(grid, job, store, history, layout, base),
            load,
            samples,
        )


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 32, 128])
def test_flowers_engine_gives_the_same_adapter_as_the_local_one(
    federation_of, load_of, tmp_path, samples
):
    federation = federation_of(("paired", "image", "text", "paired", "unpaired"))
    load = load_of(federation)
    together = Together(answer_together, load, samples)
    local = federation.run(tmp_path / "local", partial(LocalGrid, together=together))
    flower = run_over_flower(federation, tmp_path / "flower", federation.job, load, samples)
    assert flower.shared.sha256() == local.shared.sha256()
    assert flower.evaluations == local.evaluations
    assert flower.complete


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(federation_of, load_of, tmp_path):
    federation = federation_of(("paired", "image", "text", "paired"))
    load, adapters = load_of(federation), set()
    for workers in (1, 2):
        simulation = federation.job.simulation.model_copy(update={"workers": workers})
        job = federation.job.model_copy(update={"simulation": simulation})
        outcome = run_over_flower(federation, tmp_path / f"run-{workers}", job, load, 32)
        adapters.add(outcome.shared.sha256())
    assert len(adapters) == 1


@pytest.mark.slow
def test_an_error_of_the_round_loop_comes_out_as_it_is(federation_of, load_of, tmp_path):
    federation = federation_of(("paired",))
    tree = federation.job.model_dump(mode="json")
    tree["aggregate"] |= {"quorum": 2, "deadline_seconds": 3.0}
    job = type(federation.job).model_validate(tree)
    with pytest.raises(QuorumError):
        run_over_flower(federation, tmp_path / "run", job, load_of(federation))


def test_a_missing_ray_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(flower_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="make setup-ray") as caught:
        flower_engine.check_ray()
    assert "\n" not in str(caught.value)


def test_nobody_calls_home():
    assert quiet_environment(1)["FLWR_TELEMETRY_ENABLED"] == "0"
    assert quiet_environment(1)["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("gpus", "sites", "actors"), [(0, 8, 2), (0, 1, 1), (1, 8, 1), (4, 8, 4), (4, 3, 3)]
)
def test_an_actor_has_its_threads_or_a_gpu_of_its_own(
    integration_job, monkeypatch, gpus, sites, actors
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = backend_config(integration_job, gpus, sites)
    assert config["init_args"]["address"] == "local"
    assert config["init_args"]["num_cpus"] == actors
    assert config["init_args"]["num_gpus"] == (actors if gpus else 0)
    assert config["client_resources"] == {"num_cpus": 1, "num_gpus": 1.0 if gpus else 0.0}


def test_a_cluster_that_is_there_keeps_its_size(integration_job, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    init = backend_config(integration_job, 0, 8)["init_args"]
    assert not {"num_cpus", "num_gpus", "address"} & set(init)
