"""What the first attempt at a secure round went by; every later attempt goes by the same.

A site has one vector for one round: with another weight or scale it would have another one, and
the difference of two sums would tell of it. And it unmasks its vector with one set of sites only.
So both are written to the run directory before a site is asked for what depends on them.
"""

from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from server.checkpoint import RunStore
from shared.adapter import Tower
from shared.errors import StorageError

FOLDER: Final = "secure"


class FirstPlan(BaseModel):
    """What does not change from attempt to attempt.

    Attributes:
        weights: ``weights[site][tower]`` of the sites that the first attempt asked.
        scale: Fixed-point steps per unit.
        survivors: Sites of the sum that may have been unmasked already, sorted; ``None`` as long
            as nobody was asked for a share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: dict[str, dict[Tower, int]]
    scale: float
    survivors: tuple[str, ...] | None = None


class FirstPlans:
    """The first plans of a run's rounds.

    Args:
        store: The run directory, locked.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def read(self, number: int) -> FirstPlan | None:
        """Return what the first attempt at a round went by; ``None`` if none came so far.

        Raises:
            StorageError: If it cannot be read.
        """
        path = self._store.path / _name(number)
        try:
            return FirstPlan.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise StorageError(
                f"{path}: damaged or not readable; it says what the first attempt at round "
                f"{number} went by, and the sites take part in no other; put back a copy, or "
                "start the job anew with another seed"
            ) from None

    def begin(self, number: int, plan: FirstPlan) -> None:
        """Write down what a round goes by, if no attempt did; done before any site masks.

        Raises:
            StorageError: If it cannot be written; then no site may be asked.
        """
        if self.read(number) is None:
            self._write(number, plan)

    def _write(self, number: int, plan: FirstPlan) -> None:
        self._store.write_atomic(_name(number), plan.model_dump_json().encode())

    def note_survivors(self, number: int, survivors: tuple[str, ...]) -> None:
        """Write down which sum is about to be unmasked; done before any site is asked to.

        Raises:
            StorageError: If it cannot be written; then no site may be asked.
        """
        known = self.read(number)
        if known is not None and known.survivors != survivors:
            self._write(number, known.model_copy(update={"survivors": survivors}))


def _name(number: int) -> str:
    return f"{FOLDER}/round-{number:04d}.json"
