"""The tables of docs/extending.md hold what the code holds, in the same order."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from server.aggregation import AGGREGATORS
from shared.config import AggregateConfig
from shared.model.base import FAMILIES
from shared.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"


def table_of(name: str) -> list[tuple[str, str]]:
    """The first two cells of every row of the table that is marked with a name."""
    _, found, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- table: {name} -->\n")
    assert found, f"no table of {name} in {PAGE.name}"
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip().strip("`") for cell in row.split("|")] for row in rows]
    return [(row[1], row[2]) for row in cells]


def file_of(thing: Callable[..., object]) -> str:
    return str(Path(inspect.getfile(thing)).resolve().relative_to(ROOT.resolve()))


def test_every_aggregation_rule_has_its_row() -> None:
    rules = {name: make(AggregateConfig(rule=name)) for name, make in AGGREGATORS.items()}
    wanted = [(name, file_of(type(rule))) for name, rule in rules.items()]
    assert table_of("server.aggregation.AGGREGATORS") == wanted


def test_every_objective_has_its_row() -> None:
    wanted = [(name, file_of(objective)) for name, objective in OBJECTIVES.items()]
    assert table_of("shared.objectives.OBJECTIVES") == wanted


def test_every_family_has_its_row() -> None:
    assert [name for name, _ in table_of("shared.model.base.FAMILIES")] == list(FAMILIES)


@pytest.mark.parametrize("name", re.findall(r"<!-- table: (\S+) -->", PAGE.read_text("utf-8")))
def test_every_table_is_of_something_that_exists(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute)
