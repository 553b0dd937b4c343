"""What carries a run at the moment: Flower's run, which may die; ours goes on with another.

``vehicle.json`` in the run directory says which of Flower's runs carries it, and whether it is
wanted at all. Whether it is alive is told by the lock that the ServerApp holds.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.files import write_atomic

_FILE = "vehicle.json"


@dataclass(frozen=True)
class Vehicle:
    """What carries a run.

    Attributes:
        flower_run: Flower's number of the run that carries ours.
        wanted: Whether it should run until it is finished.
    """

    flower_run: int
    wanted: bool = True


def read_vehicle(run: Path) -> Vehicle | None:
    """Return what carries a run; ``None`` if it was never handed to Flower."""
    try:
        content = json.loads((run / _FILE).read_text(encoding="utf-8"))
        return Vehicle(int(content["flower_run"]), bool(content["wanted"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_vehicle(run: Path, vehicle: Vehicle) -> None:
    """Keep what carries a run.

    Raises:
        StorageError: If it cannot be written.
    """
    write_atomic(run / _FILE, (json.dumps(asdict(vehicle)) + "\n").encode())
