"""Rules that turn the sites' changes into one shared adapter; NumPy only.

``AGGREGATORS`` say which factors are trained and what becomes of them, ``COMBINERS`` how the
changes of all sites become one. A new rule is one file with its paper, one line in its dict, its
name in ``shared.config`` and one test.
"""

from collections.abc import Callable

from server.aggregation import linear
from server.aggregation.altfold import AltFold
from server.aggregation.base import Aggregator, Combiner
from server.aggregation.clipped_mean import clipped_mean
from server.aggregation.creamfl import CreamFl
from server.aggregation.fedavg import FedAvg
from server.aggregation.fedex import FedEx
from server.aggregation.fedsa import FedSa
from server.aggregation.ffa import FfaLora
from server.aggregation.flexlora import FlexLora
from server.aggregation.flora import Flora
from server.aggregation.geometric_median import geometric_median
from server.aggregation.median import coordinate_median
from server.aggregation.multi_krum import MultiKrum
from server.aggregation.optimizers import Adaptive, Momentum, ServerOptimizer
from server.aggregation.trimmed_mean import TrimmedMean
from shared.config import AggregateConfig, AggregationRule, CombiningRule, ServerOptimization

COMBINERS: dict[CombiningRule, Callable[[AggregateConfig], Combiner]] = {
    "mean": lambda _: linear.mean_change,
    "trimmed-mean": lambda config: TrimmedMean(config.hostile),
    "median": lambda _: coordinate_median,
    "geometric-median": lambda _: geometric_median,
    "multi-krum": lambda config: MultiKrum(config.hostile),
    "clipped-mean": lambda _: clipped_mean,
}

AGGREGATORS: dict[AggregationRule, Callable[[AggregateConfig], Aggregator]] = {
    "fedavg": lambda config: FedAvg(
        config.server_learning_rate, _combiner(config), _optimizer(config)
    ),
    "ffa": lambda config: FfaLora(
        config.fold_every, config.server_learning_rate, _combiner(config), _optimizer(config)
    ),
    "altfold": lambda config: AltFold(
        config.fold_every, config.server_learning_rate, _combiner(config)
    ),
    "flexlora": lambda config: FlexLora(config.tail),
    "fedex": lambda _: FedEx(),
    "flora": lambda _: Flora(),
    "creamfl": lambda _: CreamFl(),
    "fedsa": lambda config: FedSa(
        config.server_learning_rate, _combiner(config), _optimizer(config)
    ),
}


OPTIMIZERS: dict[ServerOptimization, ServerOptimizer | None] = {
    "none": None,
    "momentum": Momentum(),
    "adam": Adaptive("adam"),
    "yogi": Adaptive("yogi"),
}


def _combiner(config: AggregateConfig) -> Combiner:
    return COMBINERS[config.combine](config)


def _optimizer(config: AggregateConfig) -> ServerOptimizer | None:
    return OPTIMIZERS[config.server_optimizer]


__all__ = [
    "AGGREGATORS",
    "COMBINERS",
    "Aggregator",
    "AltFold",
    "Combiner",
    "CreamFl",
    "FedAvg",
    "FfaLora",
]
