"""docs/data.md says what the code does."""

from pathlib import Path

from client.data.columns import COLUMNS
from client.data.dicom_rules import DICOM_RULES
from client.data.rules.catalogue import RULES
from shared.config import PartitionConfig
from simulations.partition import PARTITIONS

DOC = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def table_after(heading):
    """Cells of the first table below a line."""
    lines = DOC[DOC.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_rules_are_those_of_the_code():
    expected = [[f"`{rule.name}`", rule.severity, rule.expects] for rule in RULES]
    assert table_after("## What is checked") == expected


def test_dicom_rules_are_those_of_the_code():
    assert [row[0] for row in table_after("### DICOM")] == [f"`{name}`" for name in DICOM_RULES]


def test_columns_are_those_of_the_code():
    assert [row[:2] for row in table_after("## Columns")] == [
        [f"`{name}`", holds] for name, holds in COLUMNS.items()
    ]


def test_partitions_are_those_of_the_code():
    assert [row[0] for row in table_after("<!-- partitions:")] == [f"`{by}`" for by in PARTITIONS]


def test_options_of_a_partition_are_those_of_the_code():
    defaults = {name: getattr(PartitionConfig(), name) for name in PartitionConfig.model_fields}
    shown = {k: "" if v is None else f"`{str(v).lower()}`" for k, v in defaults.items()}
    assert [row[:2] for row in table_after("<!-- options:")] == [
        [f"`{name}`", default] for name, default in shown.items()
    ]
