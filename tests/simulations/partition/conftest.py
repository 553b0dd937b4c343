"""Populations made in memory, for partitions to deal out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shared.results import DatasetOrigin
from simulations.partition.pool import Pool, Record


def record(
    patient: str, labels: str = "none", split: str = "train", number: int = 0, **more: str
) -> Record:
    cells = {
        "file_name": f"{patient}-{number}.png",
        "text": f"report of {patient}, study {number}",
        "value": "",
        "source": "all",
        **more,
    }
    return Record(
        person=f"patient\x00{patient}",
        split=split,
        labels=labels,
        patient=patient,
        row=number + 2,
        **cells,
    )


def pool(records: Sequence[Record]) -> Pool:
    sources = {r.source for r in records}
    origins = {source: DatasetOrigin(origin="public", licence="CC0") for source in sources}
    return Pool(Path("/nowhere"), tuple(sorted(records)), {s: {} for s in sources}, origins)


@pytest.fixture(scope="session")
def record_of() -> Callable[..., Record]:
    return record


@pytest.fixture(scope="session")
def pool_of() -> Callable[..., Pool]:
    return pool
