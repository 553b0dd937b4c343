"""The same job on Flower's simulation engine (Ray), in a process of its own.

FedAvg of the adapters over all clients, written as Flower's examples are; what every round took
is written as JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.update(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
)

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.fit import ATTENTION
from benchmarks.flower_client import app as client_app
from benchmarks.plain import PlainLoop


class TimedFedAvg(FedAvg):
    """Flower's own FedAvg, with a look at the clock before and after every round."""

    def __init__(self, clients: int) -> None:
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        self.seconds: list[float] = []
        self._begun = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round."""
        self._begun = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """End a round."""
        result = super().aggregate_train(server_round, replies)
        if result[0] is None:
            raise RuntimeError(f"round {server_round}: no client has answered")
        self.seconds.append(time.perf_counter() - self._begun)
        return result


def run_flower_job(given: argparse.Namespace) -> list[float]:
    """Carry the job out and return the seconds of every round."""
    strategy = TimedFedAvg(given.clients)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        while len(list(grid.get_node_ids())) < given.clients:
            time.sleep(0.05)
        start = ArrayRecord(PlainLoop(given.base, ATTENTION).state())
        config = ConfigRecord(
            {
                "base": str(given.base),
                "data": str(given.data),
                "batch": given.batch,
                "steps": given.steps,
            }
        )
        strategy.start(grid, start, num_rounds=given.rounds, train_config=config)

    backend = {
        "init_args": {"num_cpus": given.actors, "logging_level": 40, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server_app, client_app, given.clients, backend_config=backend)
    return strategy.seconds


def main() -> int:
    """Carry out what the command line says."""
    parser = argparse.ArgumentParser(description="The same job on Flower's simulation engine.")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    seconds = run_flower_job(given)
    if len(seconds) != given.rounds:
        sys.stderr.write(f"Flower finished {len(seconds)} of {given.rounds} rounds\n")
        return 1
    given.out.write_text(json.dumps({"seconds": seconds}) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
