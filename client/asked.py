"""What a site was asked to train, so that an old request cannot be played to it again.

A coordinator asks for a round again with a higher attempt, and repeats its latest question with
the same one. Everything else was recorded and is played back by somebody on the way: it would
cost the site a training and a release that nobody asked for.
"""

import json
import threading
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import StorageError
from shared.files import write_atomic


class _Run(BaseModel):
    """Rounds of one run.

    Attributes:
        latest: The round that was asked for last.
        attempts: The highest attempt of every round.
    """

    model_config = ConfigDict(extra="forbid")

    latest: int = 0
    attempts: dict[int, Annotated[int, Field(ge=1)]] = {}


_RUNS = TypeAdapter(dict[str, _Run])


class AskedRounds:
    """The rounds that a site was asked for, on its disk.

    Args:
        path: The file, readable by its owner only.

    Raises:
        StorageError: If it is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._runs = _RUNS.validate_json(path.read_bytes())
        except FileNotFoundError:
            self._runs = {}
        except (OSError, ValidationError):
            raise StorageError(
                f"{path}: damaged or not readable; it keeps old requests from being repeated; "
                "put back a copy, or move it away if no run is under way"
            ) from None

    def is_new(self, run: str, round_number: int, attempt: int) -> bool:
        """Return whether a request to train is new or the latest one, and remember it.

        Raises:
            StorageError: If that cannot be remembered; then it must not be trained.
        """
        with self._lock:
            known = self._runs.get(run, _Run())
            before = known.attempts.get(round_number, 0)
            if attempt == before and round_number == known.latest:
                return True
            if attempt <= before:
                return False
            attempts = {**known.attempts, round_number: attempt}
            after = {**self._runs, run: _Run(latest=round_number, attempts=attempts)}
            content = {name: each.model_dump(mode="json") for name, each in after.items()}
            write_atomic(self._path, json.dumps(content).encode(), mode=0o600)
            self._runs = after
            return True
