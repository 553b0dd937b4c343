"""Partitions: one population of records, dealt out to simulated sites.

A partition says which share of each class of patients goes to each site; the rest (whole
patients, the same shares in training, validation and test, seeds) is common to all. A new one is
a file with its paper and a line in ``PARTITIONS``.

``pool`` reads records, ``plan`` deals them out, ``modality`` and ``noise`` change what the sites
see of them, ``written`` keeps the result as ordinary site folders.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from shared.config import PartitionConfig, PartitionRule
from shared.errors import ConfigError
from simulations.partition.dirichlet import dirichlet
from simulations.partition.natural import natural
from simulations.partition.pathological import assigned_classes, pathological
from simulations.partition.quantity import quantity

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]
Partition = Callable[[Counts, PartitionConfig, np.random.Generator], Shares]
"""(classes,) patients per class → (classes, sites) shares."""

_ATTEMPTS = 100


def _dirichlet(counts: Counts, config: PartitionConfig, rng: np.random.Generator) -> Shares:
    balanced = config.self_balancing
    return dirichlet(counts, config.sites or 1, config.alpha, rng, self_balancing=balanced)


def _pathological(counts: Counts, config: PartitionConfig, rng: np.random.Generator) -> Shares:
    classes, sites, per_site = len(counts), config.sites or 1, config.classes_per_site
    if per_site > classes:
        raise ConfigError(
            f"partition.classes_per_site = {per_site}: there are only {classes} classes; lower it"
        )
    for _ in range(_ATTEMPTS):
        has = assigned_classes(classes, sites, per_site, config.assignment, rng)
        if has.any(axis=1).all():
            return pathological(has)
    raise ConfigError(
        f"partition: {sites} sites of {per_site} classes leave some of the {classes} classes at no "
        "site; give more sites or classes_per_site, or assignment = 'deterministic'"
    )


def _quantity(counts: Counts, config: PartitionConfig, rng: np.random.Generator) -> Shares:
    shares = quantity(config.sites or 1, config.sizes, config.alpha, rng)
    return np.tile(shares, (len(counts), 1))


def _iid(counts: Counts, config: PartitionConfig, rng: np.random.Generator) -> Shares:
    return np.tile(quantity(config.sites or 1, "equal", 1.0, rng), (len(counts), 1))


def _natural(counts: Counts, _config: PartitionConfig, _rng: np.random.Generator) -> Shares:
    return natural(len(counts))


PARTITIONS: Mapping[PartitionRule, Partition] = {
    "sites": _natural,
    "column": _natural,
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "quantity": _quantity,
}
"""Every partition by its name in the job file."""

__all__ = ["PARTITIONS", "Partition"]
