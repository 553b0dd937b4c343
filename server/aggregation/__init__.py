"""Rules that turn the sites' changes into one shared adapter; NumPy only.

A new rule is one file with its paper, one line in ``AGGREGATORS``, its name in
``shared.config.AggregationRule`` and one test.
"""

from collections.abc import Callable

from server.aggregation.altfold import AltFold
from server.aggregation.base import Aggregator
from server.aggregation.fedavg import FedAvg
from server.aggregation.ffa import FfaLora
from shared.config import AggregateConfig, AggregationRule

AGGREGATORS: dict[AggregationRule, Callable[[AggregateConfig], Aggregator]] = {
    "fedavg": lambda config: FedAvg(config.server_learning_rate),
    "ffa": lambda config: FfaLora(config.fold_every, config.server_learning_rate),
    "altfold": lambda config: AltFold(config.fold_every, config.server_learning_rate),
}

__all__ = ["AGGREGATORS", "Aggregator", "AltFold", "FedAvg", "FfaLora"]
