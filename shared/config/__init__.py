"""The job file, table by table; everything is imported from here."""

from shared.config.aggregate import (
    AggregateConfig,
    AggregationRule,
    CombiningRule,
    ServerOptimization,
)
from shared.config.data import DataConfig, PartitionConfig, PartitionRule, Rates, rate_of
from shared.config.job import COMMAND_LINE, JobConfig, load_job, parse_job
from shared.config.model import LoraConfig, ModelConfig, Precision
from shared.config.privacy import PrivacyConfig
from shared.config.proxy import LEAST_PROXY_PAIRS, ProxyConfig
from shared.config.run import AttackConfig, AttackKind, Engine, EvaluateConfig, SimulationConfig
from shared.config.train import PersonalizationMethod, PersonalizeConfig, TrainConfig

__all__ = [
    "COMMAND_LINE",
    "LEAST_PROXY_PAIRS",
    "AggregateConfig",
    "AggregationRule",
    "AttackConfig",
    "AttackKind",
    "CombiningRule",
    "DataConfig",
    "Engine",
    "EvaluateConfig",
    "JobConfig",
    "LoraConfig",
    "ModelConfig",
    "PartitionConfig",
    "PartitionRule",
    "PersonalizationMethod",
    "PersonalizeConfig",
    "Precision",
    "PrivacyConfig",
    "ProxyConfig",
    "Rates",
    "ServerOptimization",
    "SimulationConfig",
    "TrainConfig",
    "load_job",
    "parse_job",
    "rate_of",
]
