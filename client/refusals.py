"""Why a request is refused: a code for the coordinator, and the place for the site's own log.

The text of an error may quote a record, so neither holds it.
"""

import logging
import traceback
from pathlib import Path

from client.device_faults import DEVICE_LOST, OUT_OF_MEMORY, is_out_of_memory, lost_device
from shared.errors import (
    AdapterMismatchError,
    BaseModelError,
    DataError,
    IdentityError,
    RefusedError,
    SecureSumError,
    StorageError,
    TrainingError,
    VersionError,
    WireError,
)
from shared.versions import OTHER_VERSION

log = logging.getLogger(__name__)

_OURS = Path(__file__).parents[1]

# The reason code that stands for a sort of error; the error's own text stays at the site.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (WireError, "wire"),
    (DataError, "data"),
    (BaseModelError, "base"),
    (AdapterMismatchError, "adapter-mismatch"),
    (StorageError, "storage"),
    (MemoryError, "out-of-memory"),
)


def reason_of(error: Exception) -> str:
    """Return the code for an error, and note at the site where it came from.

    Only its type and place are logged: the text of an error may quote a record.
    """
    where = place_of(error)
    if isinstance(error, VersionError):
        log.error("request refused: %s", error)  # it names both versions, and nothing else
        return OTHER_VERSION
    if isinstance(error, RefusedError | TrainingError | SecureSumError):
        log.warning("request refused: %s%s", error.reason, where and f" at {where}")
        if isinstance(error, RefusedError) and error.fields:
            log.warning("the site's policy does not allow: %s", error)  # of the job, no record
        return error.reason
    if isinstance(error, IdentityError):
        log.error("request refused: storage: %s", error)  # it names files and keys of ours
        return "storage"
    for sort, reason in _REASONS:
        if isinstance(error, sort):
            log.warning("request refused: %s (%s at %s)", reason, type(error).__name__, where)
            return reason
    device = OUT_OF_MEMORY if is_out_of_memory(error) else DEVICE_LOST if lost_device(error) else ""
    if device:
        log.error("request refused: %s at %s", device, where)
        return device
    log.error("request refused: internal (%s at %s)", type(error).__name__, where)
    return "internal"


def place_of(error: Exception) -> str:
    """Return where an error came from; empty for one that was handed on and never raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_OURS)]
    places = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno}" for f in (*own[-1:], *frames[-1:]))
    return " in ".join(reversed(places))
