"""The plan: which site gets which records, worked out before anything is written."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.config import PartitionConfig, rate_of
from shared.errors import ConfigError
from shared.seeding import derive_seed
from simulations.partition import PARTITIONS
from simulations.partition.divide import divide
from simulations.partition.modality import as_kind, kinds_of, with_missing
from simulations.partition.noise import with_noise
from simulations.partition.pool import Pool, Record, classes_of_column, classes_of_labels

_ATTEMPTS = 20
_NATURAL = ("sites", "column")
_REMEDIES: Mapping[str, str] = {
    "sites": "take that site out of the folder",
    "column": "join that value with another one in the table",
    "iid": "lower partition.sites",
    "dirichlet": "lower partition.sites or raise partition.alpha",
    "pathological": "lower partition.sites or raise partition.classes_per_site",
    "quantity": "lower partition.sites or take sizes = 'linear'",
}


@dataclass(frozen=True)
class SitePlan:
    """One simulated site.

    Attributes:
        name: Its name.
        records: What it has, in the order in which it is written.
        noisy: Places in ``records`` whose text is that of another patient.
        left_out: Records of its patients with nothing of what its kind has.
    """

    name: str
    records: tuple[Record, ...]
    noisy: frozenset[int] = frozenset()
    left_out: int = 0


def plan_sites(pool: Pool, config: PartitionConfig, seed: int) -> list[SitePlan]:
    """Deal a population out to simulated sites.

    Args:
        pool: The population.
        config: How.
        seed: The job's seed; with the same records it gives the same sites.

    Raises:
        ConfigError: If a site would have too little, or the options do not fit the records; says
            which site and what to change.
    """
    classes, names = _classes(pool, config)
    parts = _parts(pool, config, classes, names, seed)
    for option in ("missing_image", "missing_text", "noisy_pairs"):
        _check_names(option, getattr(config, option), names)
    kinds = kinds_of(names, config.kinds, _rng(seed, "kinds")) if config.kinds else {}
    plans = []
    for name, records in zip(names, parts, strict=True):
        kept = as_kind(records, kinds[name]) if kinds else list(records)
        left_out = len({(r.source, r.row) for r in records} - {(r.source, r.row) for r in kept})
        missing = (rate_of(config.missing_image, name), rate_of(config.missing_text, name))
        kept = with_missing(kept, *missing, _rng(seed, "missing", name))
        rate = rate_of(config.noisy_pairs, name)
        kept, noisy = with_noise(kept, rate, _rng(seed, "noise", name))
        if (training := _training(kept)) < config.min_size:
            raise ConfigError(
                f"partition: site {name!r} would keep {training} training records as a site of "
                f"kind '{kinds[name]}', expected partition.min_size = {config.min_size} or more: "
                "its patients have no more of that modality; change partition.kinds"
            )
        plans.append(SitePlan(name, tuple(kept), frozenset(noisy), left_out))
    return plans


def numbered(sites: int) -> list[str]:
    """Return the names of so many sites, which sort by their numbers."""
    width = max(2, len(str(sites)))
    return [f"site-{number:0{width}d}" for number in range(1, sites + 1)]


def _rng(seed: int, *purpose: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "partition", *purpose))


def _classes(pool: Pool, config: PartitionConfig) -> tuple[dict[str, str], list[str]]:
    """Each patient's class, and the sites' names."""
    if config.by in _NATURAL:
        classes = classes_of_column(pool)
        return classes, _natural_names(pool, classes)
    names = numbered(config.sites or 1)
    if config.by in ("iid", "quantity"):
        return dict.fromkeys(pool.persons, ""), names
    classes = classes_of_column(pool) if config.column else classes_of_labels(pool)
    return classes, names


def _natural_names(pool: Pool, classes: Mapping[str, str]) -> list[str]:
    nameless = sorted(pool.persons[person][0].row for person, value in classes.items() if not value)
    if nameless:
        raise ConfigError(
            f"partition.column: {len(nameless)} patients have no value in it, the first in row "
            f"{nameless[0]}, and would belong to no site; fill the column"
        )
    names = sorted(set(classes.values()))
    for name in names:
        if len(name) > 200 or not name.isprintable() or {"/", "\\"} & {*name} or name[0] in "._":
            row = min(r.row for r in pool.records if r.value == name)
            raise ConfigError(
                f"partition.column: the value in row {row} cannot be a site's name; expected 1 to "
                "200 printable characters without / or \\, not beginning with . or _"
            )
    return names


def _parts(
    pool: Pool,
    config: PartitionConfig,
    classes: Mapping[str, str],
    names: Sequence[str],
    seed: int,
) -> list[list[Record]]:
    """Each site's records; what is drawn is drawn again while a site has too few to train on."""
    persons = list(pool.persons)
    values, rows = np.unique([classes[person] for person in persons], return_inverse=True)
    counts = np.bincount(rows, minlength=len(values)).astype(np.int64)
    splits = ["train", "val", "test"]
    of_split = np.array([splits.index(pool.persons[person][0].split) for person in persons])
    # The same shares in every split, so that a site is tested on what it is trained on.
    groups = (rows * len(splits) + of_split).astype(np.int64)
    training = np.array([_training(pool.persons[person]) for person in persons])
    best, smallest = -1, ""
    for attempt in range(1 if config.by in _NATURAL else _ATTEMPTS):
        rng = _rng(seed, "sites", attempt)
        shares = PARTITIONS[config.by](counts, config, rng)
        places = divide(groups, np.repeat(shares, len(splits), axis=0), rng)
        sizes = np.bincount(places, weights=training, minlength=len(names)).astype(int)
        if sizes.min() >= config.min_size:
            return _dealt(pool, persons, places, len(names))
        if sizes.min() > best:
            best, smallest = int(sizes.min()), names[int(sizes.argmin())]
    drawn = "" if config.by in _NATURAL else f" in the best of {_ATTEMPTS} draws"
    raise ConfigError(
        f"partition: site {smallest!r} would have {best or 'no'} training "
        f"record{'' if best == 1 else 's'}{drawn}, expected partition.min_size = "
        f"{config.min_size} or more; {_REMEDIES[config.by]}"
    )


def _dealt(
    pool: Pool, persons: Sequence[str], places: NDArray[np.int64], sites: int
) -> list[list[Record]]:
    parts: list[list[Record]] = [[] for _ in range(sites)]
    for person, place in zip(persons, places, strict=True):
        parts[place] += pool.persons[person]
    return parts


def _training(records: Sequence[Record]) -> int:
    return sum(record.split == "train" for record in records)


def _check_names(option: str, rates: Mapping[str, float], names: Sequence[str]) -> None:
    for name in rates:
        if name != "all" and name not in names:
            near = difflib.get_close_matches(name, [*names, "all"], n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"partition.{option}: no site {name!r} in this partition; did you mean {near!r}?"
            )
