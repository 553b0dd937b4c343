"""Flower's simulation engine (Ray) carries the same run to the same bits; needs ``ray``."""

import pytest

from server.app import run_job
from server.checkpoint import RunStore
from server.history import RunHistory
from shared.errors import ConfigError, QuorumError
from simulations import flower_engine
from simulations.flower_engine import backend_config, quiet_environment
from simulations.grid import run_flower


def run_over_flower(federation, run, job):
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
        )


@pytest.mark.slow
def test_flowers_engine_gives_the_same_adapter_as_the_local_one(federation_of, tmp_path):
    federation = federation_of()
    local = federation.run(tmp_path / "local")
    flower = run_over_flower(federation, tmp_path / "flower", federation.job)
    assert flower.shared.sha256() == local.shared.sha256()
    assert flower.evaluations == local.evaluations
    assert flower.complete


@pytest.mark.slow
def test_an_error_of_the_round_loop_comes_out_as_it_is(federation_of, tmp_path):
    federation = federation_of(("paired",))
    tree = federation.job.model_dump(mode="json")
    tree["aggregate"] |= {"quorum": 2, "deadline_seconds": 3.0}
    with pytest.raises(QuorumError):
        run_over_flower(federation, tmp_path / "run", type(federation.job).model_validate(tree))


def test_a_missing_ray_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(flower_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="make setup-ray") as caught:
        flower_engine.check_ray()
    assert "\n" not in str(caught.value)


def test_nobody_calls_home():
    assert quiet_environment(1)["FLWR_TELEMETRY_ENABLED"] == "0"
    assert quiet_environment(1)["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("gpus", "sites", "cpus", "share"),
    [(0, 8, 2, 0.0), (1, 8, 2, 0.5), (4, 8, 2, 1.0), (0, 1, 1, 0)],
)
def test_actors_share_what_the_machine_has(integration_job, monkeypatch, gpus, sites, cpus, share):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = backend_config(integration_job, gpus, sites)
    assert config["init_args"]["num_cpus"] == cpus
    assert config["client_resources"] == {"num_cpus": 1, "num_gpus": share}


def test_a_cluster_that_is_there_keeps_its_size(integration_job, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "num_cpus" not in backend_config(integration_job, 0, 8)["init_args"]
