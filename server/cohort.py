"""Which sites are asked in a round."""

from collections.abc import Collection

import numpy as np

from shared.config import AggregateConfig
from shared.seeding import derive_seed


def choose_cohort(
    sites: Collection[str], size: int | None, seed: int, round_number: int
) -> list[str]:
    """Return the sites of a round, sorted; all of them unless ``size`` is smaller.

    The choice depends on seed, round and the names alone, so a resumed run repeats it.
    """
    names = sorted(sites)
    if size is None or size >= len(names):
        return names
    generator = np.random.default_rng(derive_seed(seed, "cohort", round_number))
    chosen = generator.choice(len(names), size, replace=False)
    return sorted(names[index] for index in chosen)


def least_replies(config: AggregateConfig, meant: int) -> int:
    """Return how many admitted replies a round needs: the quorum, or half of the cohort.

    Args:
        config: Cohort and quorum.
        meant: Sites that could train, whether they can be reached or not; without a cohort
            size all of them are the cohort.
    """
    if config.quorum is not None:
        return config.quorum
    cohort = meant if config.cohort is None else min(config.cohort, meant)
    return max(1, (cohort + 1) // 2)
