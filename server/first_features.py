"""Where an exchange of features begins: what the job's base makes of the public pairs.

A file in the run directory, made with the run, so that the coordinator needs neither the base nor
the pairs, and a run that goes on begins where it began.
"""

from typing import Final

import numpy as np

from server.aggregation import CreamFl
from server.checkpoint import RunStore
from shared.adapter import TOWERS, Adapter, SharedAdapter
from shared.errors import RunDirectoryError
from shared.layout_file import adapter_bytes, load_adapter

FIRST_FEATURES: Final = "first-features.safetensors"
"""Name of the file in the run directory."""


def write_first_features(store: RunStore, features: Adapter) -> None:
    """Write the features by tower, (N, d), L2-normalised.

    Raises:
        StorageError: If they cannot be written.
    """
    store.write_atomic(FIRST_FEATURES, adapter_bytes(SharedAdapter({}, features=features)))


def creamfl_of(store: RunStore) -> CreamFl:
    """Return the rule of a run whose sites exchange features.

    Raises:
        RunDirectoryError: If the file is missing or something else.
    """
    path = store.path / FIRST_FEATURES
    features = load_adapter(path).features
    shapes = {values.shape for values in features.values()}
    finite = all(np.isfinite(values).all() for values in features.values())
    if features.keys() != set(TOWERS) or len(shapes) != 1 or not finite:
        raise RunDirectoryError(
            f"{path}: expected features of both towers, equally many and wide; start a new run"
        )
    return CreamFl(store.job.proxy.temperature, features)
