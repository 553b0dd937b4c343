"""Sites side by side: numbers that add up, bars of the right length, a figure without records."""

import csv
import io
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from client.data.describe import NOISY_COLUMN, describe_site
from client.data.overview import figure, findings_of, overview_tables, parts_of, write_figure
from client.data.report import DataOptions, print_describe
from client.data.sources import find_sites
from shared.errors import ConfigError


@pytest.fixture
def sites(site):
    """North as it is; south with a noisy pair, a lone image and a lone text in training."""
    north = site.write().path
    for number, row in enumerate(site.rows):
        row[NOISY_COLUMN] = "yes" if number == 0 else ""
    site.rows[1]["text"] = ""
    site.rows[2]["file_name"] = ""
    south = north.parent / "south"
    south.mkdir()
    for path in north.iterdir():
        (south / path.name).write_bytes(path.read_bytes())
    with (south / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(site.rows[0]))
        writer.writeheader()
        writer.writerows(site.rows)
    return north.parent


@pytest.fixture
def described(sites):
    return [describe_site(source) for source in find_sites(sites)]


def test_training_records_are_counted_once(described):
    north, south = described
    assert parts_of(north) == {"pairs": 4, "noisy pairs": 0, "images only": 0, "texts only": 0}
    assert parts_of(south) == {"pairs": 1, "noisy pairs": 1, "images only": 1, "texts only": 1}
    assert findings_of(described) == [{"edema": 2}, {"edema": 2}]


def test_rates_stand_beside_their_counts(described):
    table = overview_tables(described)[0]
    rows = [[str(cell) for cell in column.cells] for column in table.columns[2:6]]
    assert [row[0] for row in rows] == ["4", "0", "0", "0"]
    # one of two pairs is noisy; one of four records lacks its text, one its image
    assert [row[1] for row in rows] == ["1", "1 (50%)", "1 (25%)", "1 (25%)"]


def test_a_long_note_stands_whole_below_the_bars(described, tmp_path):
    note = "Partition by " + "x < y, " * 40
    write_figure(tmp_path / "f.svg", described, note)
    root = ET.parse(tmp_path / "f.svg").getroot()  # noqa: S314 - our own
    texts = [e for e in root.iter("{http://www.w3.org/2000/svg}text") if "x < y" in (e.text or "")]
    assert " ".join(e.text for e in texts) == note.strip()
    assert max(float(e.get("y")) for e in texts) < float(root.get("height"))


def test_bars_have_the_length_of_their_numbers(described):
    table, findings = overview_tables(described)
    bars = [str(cell) for cell in table.columns[-1].cells]
    assert [len(bar) for bar in bars] == [12, 12]
    assert len(list(findings.columns)) == 2
    root = ET.fromstring(figure(described))  # noqa: S314 - our own
    widths = {
        (title.text or ""): float(rect.get("width", 0))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect")
        for title in rect
    }
    assert widths["pairs: 4"] == 4 * widths["noisy pairs: 1"] == 300


def test_description_figure_and_page_hold_no_record(sites, tmp_path):
    console = Console(file=io.StringIO(), width=80)
    page = tmp_path / "page.html"
    assert print_describe(sites, DataOptions(), console, figure=page) == 0
    text = console.file.getvalue()
    assert "1 with another's text" in " ".join(text.split())
    assert re.search(r"south +paired +1 +1 \(50%\) +1 \(25%\) +1 \(25%\)", text)
    content = page.read_text()
    assert content.startswith("<!doctype html>")
    assert "zebra" not in (content + text).lower()
    with pytest.raises(ConfigError, match=r"ends in \.svg or \.html"):
        write_figure(tmp_path / "figure.png", [])


def test_rare_findings_are_joined(described):
    north = described[0]
    many = [
        type(north.findings[0])(f"f{n:02}", {"train": 20 - n, "val": 0, "test": 0}, False)
        for n in range(15)
    ]
    site = type(north)(**{**north.__dict__, "findings": tuple(many)})
    (row,) = findings_of([site])
    assert list(row) == [f"f{n:02}" for n in range(9)] + ["others"]
    assert row["others"] == sum(20 - n for n in range(9, 15))
